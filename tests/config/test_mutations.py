"""Whatever a file or an override says, it is loaded or refused in one short line."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from glr_dist.config import load_config
from glr_dist.errors import ConfigError
from glr_dist.robustness.suite import load_suite
from glr_dist.tuning.search_config import load_search

LONGEST = 500  # characters of a message

CONFIG = """\
seed: 3
data: {name: digits, validation: 0.1, split_seed: 0}
model: {hidden: [8, 8], activation: threshold}
noise:
  law: laplace
  scale: {'1': 0.5, '*': 1}
  schedule: {2: 0.5}
estimator: {name: conditional, copies: 8, passes: {'*': 2}, sampler: iid}
training:
  epochs: 3
  optimizer: {name: Adam, lr: 1e-2, betas: [0.9, 0.99]}
  schedule: {name: StepLR, step_size: 2}
execution: {kind: layers, actors: 2}
tracking: {tags: {a: b}}
"""
SEARCH = """\
noise: {law: gaussian}
training: {epochs: 3}
tune:
  space:
    noise.scale: {loguniform: [0.1, 2]}
    estimator.copies: {choice: [8, 16]}
  trials: 4
  scheduler: asha
"""
SUITE = """\
examples: 100
attacks: [{name: fgsm, eps: [0.1, 0.2]}, {name: pgd, steps: 3}]
corruptions: {names: [fog], severities: [1, 3]}
surrogate: {model: {hidden: [4]}, training: {epochs: 1}}
"""

BOMB = "{a: &a [x, x, x, x, x, x, x, x], " + ", ".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]" for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)
VALUES = [
    *("", "~", "null", "true", "[]", "{}", "[[]]", "{'': 1}", "{~: 1}", "{1: 2}", "[1, two, 3.0]", "- 1", "? [1]"),
    *("0", "-0", "-1", "010", "0x10", "0o17", "1_000", "1:30", "1e400", "-1e400", ".inf", "-.inf", ".nan", "1e-400"),
    *("9" * 30, "9" * 5000, "-" + "9" * 5000, "0." + "1" * 5000, "1e" + "9" * 50, "9223372036854775808", "1e308"),
    *("2020-99-99", "2020-01-01", "2001-12-14t21:59:43.10-05:00", "yes", "No", "on", "=", "<<", "!!int foo"),
    *("!!bool x", "!!map [1]", "!!binary x", "!!python/object:os.system x", "!x y", "!!float 1:2", "!!timestamp x"),
    *("*none", "&a [*a]", "&a {b: *a}", "{<<: *a}", "{<<: 1}", "{<<: [1]}", "&a 1", BOMB + "}"),
    *("[" * 2000, "[" * 2000 + "]" * 2000, "{a: " * 500 + "1" + "}" * 500, "'" + "x" * 300_000 + "'", "x" * 10_000),
    *(
        '"\\n\\r\\t"',
        '"a\\nb"',
        '"\\0"',
        '"\\e[31m"',
        "'\u2028'",
        "日本語",
        "🎲",
        "'{}'",
        "%TAG",
        "@x",
        "`",
        "|",
        ">-",
        "|\n  a",
    ),
    *("choice", "{choice: null}", "{loguniform: }", "{uniform: [1]}", "{choice: [[]]}", "{grid: [1]}", "{kind: x}"),
    *("digits", "mlp", "gaussian", "none", "pathwise", "joint", "auto", "replicas", "asha", "pbt", "fgsm", "lbfgs"),
]
KEYS = [
    "x",
    "'a\\nb'",
    '"a\\nb"',
    "1",
    "true",
    "~",
    "? [1]\n",
    "<<",
    "''",
    "'*'",
    "[1]",
    "{a: b}",
    "k" * 5000,
    "né",
    "name",
]


def mutated(text: str, draw: random.Random) -> str:
    """The text after one to three random changes of characters, lines, values or keys."""
    for _ in range(draw.randint(1, 3)):
        lines = text.splitlines() or [""]
        number = draw.randrange(len(lines))
        line = lines[number]
        key, colon, _ = line.partition(": ")
        place = draw.randrange(len(text) + 1)
        kind = draw.randrange(7)
        if kind == 0:
            lines[number] = f"{key}: {draw.choice(VALUES)}"
        elif kind == 1 and colon:
            words = [
                word for word in line.replace("{", " ").replace("}", " ").replace(",", " ").split() if ":" not in word
            ]
            lines[number] = line.replace(draw.choice(words), draw.choice(VALUES), 1) if words else line
        elif kind == 2 and colon:
            lines[number] = line.replace(key.strip(), draw.choice(KEYS), 1)
        elif kind == 3:
            lines.insert(number, draw.choice([line, f"{draw.choice(KEYS)}: {draw.choice(VALUES)}"]))
        elif kind == 4:
            del lines[number]
        elif kind == 5:
            lines = [text[:place] + draw.choice("{}[]:,'\"#&*!|>%@\t \n-?~0a\x07é") + text[place:]]
        else:
            lines = [text[:place] + text[place + draw.randint(1, 5) :]]
        text = "\n".join(lines)
    return text


def overrides(names: list[str], draw: random.Random) -> list[str]:
    """Usually none, else one or two overrides of known and unknown fields."""
    number = draw.choice([0, 0, 1, 2])
    return [f"{draw.choice([*names, *KEYS])}={draw.choice(VALUES)}" for _ in range(number)]


FIELDS = {
    CONFIG: [
        *("seed", "data", "data.root", "model.hidden", "noise.scale", "noise.scale.1", "noise.schedule", "noise.sites"),
        *("estimator", "estimator.copies", "training.optimizer", "training.optimizer.lr", "training.schedule.name"),
        *(
            "execution",
            "execution.device",
            "tracking",
            "tracking.uri",
            "tracking.tags",
            "diagnose.copies",
            "a.b.c",
            ".",
            "",
        ),
    ],
    SEARCH: [
        "tune",
        "tune.space",
        "tune.space.seed",
        "tune.trials",
        "tune.objectives",
        "tune.robustness",
        "noise.scale",
    ],
    SUITE: [
        "attacks",
        "attacks.0",
        "corruptions",
        "corruptions.names",
        "examples",
        "surrogate",
        "inference.votes",
        "seed",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "load", "number"),
    [
        (CONFIG, load_config, 200),
        (SEARCH, load_search, 60),
        (SUITE, lambda path, words: load_suite(str(path), words), 60),
    ],
    ids=["configuration", "search", "suite"],
)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, 10))])
def test_a_mutated_file_is_loaded_or_refused_in_one_short_line(
    tmp_path: Path, text: str, load: Callable[[Path, list[str]], object], number: int, part: int
):
    path = tmp_path / "mutated.yaml"
    path.write_text(text)
    load(path, [])  # the original is right
    loaded = 0
    for seed in range(part * number, (part + 1) * number):
        draw = random.Random(seed)
        path.write_text(mutated(text, draw), encoding="utf-8")
        words = overrides(FIELDS[text], draw)
        try:
            load(path, words)
            loaded += 1
        except ConfigError as error:
            message = str(error)
            assert len(message.splitlines()) == 1, (seed, message)
            assert message.isprintable(), (seed, message)
            assert len(message) <= LONGEST, (seed, message)
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, {path.read_text()[:2000]!r} {[w[:200] for w in words]}: {error!r}"[:5000]
            ) from error
    assert loaded < number / 2
    assert loaded or number < 200  # both sides are tried; hardly one mutation in a hundred leaves a search valid
