"""URIs without their credentials, and messages without secrets."""

from __future__ import annotations

import json
from urllib.parse import quote, quote_plus, urlsplit

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from glr_dist import redaction
from glr_dist.config import Config, build, dump_config, load_config, overridden
from glr_dist.errors import ConfigError, UserError
from glr_dist.redaction import redact, remember
from glr_dist.text import one_line
from glr_dist.uris import secrets_of, server_of, without_credentials

CLEANED = {
    "postgresql://me:12/SECRET@host/db": "postgresql://host/db",
    "postgresql://me:SE/CRET@host/db?user=a@b&password=SECRET": "postgresql://b",
    "https://me:SECRET@host:5000/x": "https://host:5000/x",
    "https://SECRET@host": "https://host",
    "http://me@company.com:SECRET@host": "http://host",
    "http://me%40company.com:SE%43RET@host/": "http://host/",
    "http://@:SEC]#RET@host/x": "http://host/x",
    "http://me:it's \"SE CRET@host:1/x": "http://host:1/x",
    "http://me:p[SECRET]x@[::1]:5000/a": "http://[::1]:5000/a",
    "http://me:SECRET%40host": "http://me",  # escaped too much
    "http://me:SECRET": "http://me",  # the host is missing
    "postgresql://me:SEC/RET@et@host/db": "postgresql://host/db",
    "mysql+pymysql://me:SE?CRET#x@host/db": "mysql+pymysql://host/db",
    "postgresql+psycopg2:///db?user=a&password=SECRET&sslmode=require": "postgresql+psycopg2:///db?sslmode=require",
    "postgresql://h/db?p%61ssword=SECRET": "postgresql://h/db",
    "postgresql://h/db?sslmode=require&password=SE&CRET#more": "postgresql://h/db?sslmode=require",
    "mssql+pyodbc:///?odbc_connect=PWD%3DSECRET": "mssql+pyodbc:///",
    "sqlite+pysqlcipher://:SECRET@/f.db": "sqlite+pysqlcipher:///f.db",
    "http://h/x#access_token=SECRET": "http://h/x",
    "http://h/?to=http%3A%2F%2Fme%3ASECRET%40k&x=1": "http://h/?to=http://k&x=1",
    "see http://a:SECRET@h and http://b:SECRET@k/c": "see http://h and http://k/c",
}
KEPT = [
    "http://127.0.0.1:5000",
    "http://h/team@other",
    "http://h:5000/team@other?x=a@b",
    "http://[::1]:5000/team@other",
    "sqlite:////a/b@c/mlflow.db",
    "sqlite:////a?b/c#d/mlflow.db",
    "postgresql://host:5432/db?sslmode=require",
    "databricks",
    "note: ask me@company.com",
]


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(redaction, "_seen", {})
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("uri", "clean"), CLEANED.items())
def test_credentials_are_removed(uri, clean):
    assert without_credentials(uri) == clean
    assert without_credentials(clean) == clean
    assert secrets_of(uri)


@pytest.mark.parametrize("uri", KEPT)
def test_a_uri_without_credentials_stays_as_it_is(uri):
    assert without_credentials(uri) == uri
    assert not secrets_of(uri)


PASSWORD = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).map(lambda text: f"SEC{text}RET")
USER = st.text("abz.@%-_ ", min_size=1, max_size=8)


@pytest.mark.slow
@given(USER, PASSWORD, st.sampled_from(["http", "https", "postgresql+psycopg2"]), st.sampled_from(["", ":5000"]))
def test_no_password_survives(user, password, scheme, port):
    for written in (quote(password, safe=""), password):
        # An authority ends at these, in a password that is not escaped: the rest is a path for every client.
        assume(not (scheme.startswith("http") and "@" in password and set("/?#") & set(written)))
        assume(not ("://" in password or (written == password and "@" in password and set("/?#") & set(password))))
        for uri in (
            f"{scheme}://{user}:{written}@host{port}/x",
            f"{scheme}://host{port}/x?user={user}&password={quote(password)}",
        ):
            clean = without_credentials(uri)
            assert clean == f"{scheme}://host{port}/x", uri


@given(st.from_regex(r"https?://[a-z0-9.]{1,9}(:[0-9]{1,5})?(/[a-z@:%.]{0,9}){0,3}", fullmatch=True))
@settings(max_examples=40)
def test_a_path_is_not_taken_for_credentials(uri):
    assume(uri.count("://") == 1)
    assert without_credentials(uri) == uri
    assert server_of(uri)[:2] == (urlsplit(uri).scheme, urlsplit(uri).hostname or "")


def test_a_server_is_its_scheme_host_and_port():
    assert server_of("HTTP://me:x@Host/a") == server_of("http://host:80") == ("http", "host", "80")
    assert server_of("https://host") != server_of("http://host")
    assert server_of("http://[::1]:1/x") == ("http", "[::1]", "1")


# ---------------------------------------------------------------- messages


SECRET = "it's \"SE CRET/ö"


@pytest.mark.parametrize(
    "form",
    [
        str,
        repr,
        json.dumps,
        quote,
        quote_plus,
        lambda s: quote(s, safe=""),
        lambda s: f"x{s}y",
        "http://me:{}@h".format,
    ],
)
def test_messages_have_no_form_of_a_known_secret(form):
    remember({"tracking": [f"http://me:{SECRET}@host"]})
    for shown in (str(UserError(form(SECRET))), redact(form(SECRET)), one_line(ValueError(form(SECRET)))):
        assert "CRET" not in shown


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_TRACKING_PASSWORD", SECRET),
        ("MLFLOW_TRACKING_TOKEN", SECRET),
        ("MLFLOW_TRACKING_URI", f"http://me@company.com:{SECRET}@host"),
        ("MLFLOW_TRACKING_URI", f"postgresql:///x?user=a&password={SECRET}"),
    ],
)
def test_messages_have_no_secret_of_the_environment(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert "CRET" not in str(UserError(f"no answer ({value})"))
    assert "CRET" not in one_line(ValueError(f"{'x' * 290} {SECRET} at"), limit=20)  # which cuts the secret


def test_a_long_value_is_cleaned_before_it_is_shortened():
    for length in range(40, 90):
        with pytest.raises(ConfigError) as caught:
            overridden({}, [f"{'x' * length}http://me:{SECRET}@host{'y' * 90}"])
        assert not {part for part in ("CRET", "SE ", "me:") if part in str(caught.value)}


def test_a_uri_that_nobody_knows_is_cleaned_as_a_word():
    assert (
        str(UserError("no 'http://me:SECRET@host', and http://a:b@other/c")) == "no 'http://host', and http://other/c"
    )
    assert str(UserError("no http://h:5000), x@y")) == "no http://h:5000), x@y"


URIS = [uri for uri in CLEANED if not uri.startswith(("see", "https://SECRET", "http://me:SECRET"))]


@pytest.mark.parametrize("uri", URIS)
def test_a_config_keeps_credentials_in_memory_only(tmp_path, uri):
    config = build(Config, {"tracking": {"kind": "mlflow", "uri": uri, "tags": {"data": uri, "note": "plain"}}})
    assert config.tracking.uri == uri
    assert config.tracking.tags == {"data": CLEANED[uri], "note": "plain"}
    for shown in (dump_config(config), repr(config), config.model_dump_json()):
        assert not {part for part in ("SECRET", "SE", "CRET", "RET") if part in shown}
    (tmp_path / "kept.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "kept.yaml").tracking.uri == CLEANED[uri]


@pytest.mark.parametrize("uri", URIS)
@pytest.mark.parametrize(
    "values",
    [
        lambda uri: uri,
        lambda uri: {"uri": [uri]},
        lambda uri: {"url": uri},
        lambda uri: {uri: 1},
        lambda uri: {"kind": uri},
        lambda uri: {"tags": {uri: "x"}},
        lambda uri: {"tags": uri},
        lambda uri: {"experiment": f"{uri}\n"},
        lambda uri: {"register_as": uri},
    ],
)
def test_an_error_about_a_uri_shows_no_credentials(values, uri):
    with pytest.raises(ConfigError) as caught:
        build(Config, {"tracking": values(uri)})
    assert "SEC" not in str(caught.value)
    assert "CRET" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        overridden({}, [uri.replace("=", "")])
    assert "SEC" not in str(caught.value)


def test_a_uri_without_a_scheme_is_refused_and_not_shown():
    with pytest.raises(ConfigError, match="no scheme") as caught:
        build(Config, {"tracking": {"uri": "me:SECRET@host"}})
    assert "SECRET" not in str(caught.value)
