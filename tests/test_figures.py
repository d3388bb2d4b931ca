"""Pictures: PNG and PDF, and a warning in place of a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from glr_dist import cli
from glr_dist.figures import draw, figure_of


def drawn(path: Path) -> tuple[bytes, bytes]:
    def figure():
        made = figure_of(2, 1)
        made.subplots().plot([0, 1], [0, 1])
        return made

    assert draw(path, figure)
    return path.read_bytes(), path.with_suffix(".pdf").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_a_picture_is_a_png_and_a_pdf_that_depend_on_the_figure_alone(tmp_path):
    png, pdf = drawn(tmp_path / "one.png")
    assert png.startswith(b"\x89PNG")
    assert pdf.startswith(b"%PDF")
    assert (png, pdf) == drawn(tmp_path / "two.png")


@pytest.mark.parametrize(
    "error", [ImportError("no\nbackend"), RuntimeError("no fonts"), OSError(28, "No space left on device")]
)
def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path, capsys, error):
    def figure():
        raise error

    assert not draw(tmp_path / "one.png", figure)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'one.png'}: cannot be drawn (")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "result"), [("plan", "plan.json"), ("diagnose", "diagnose.json"), ("train", "summary.json")]
)
def test_a_command_ends_well_without_its_picture(tiny_yaml, tmp_path, monkeypatch, capsys, command, result):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    short = ["diagnose.copies=[4]", "diagnose.draws=2", "diagnose.batch=8", "diagnose.reference_passes=50"]
    out = tmp_path / "out"
    assert cli.main([command, str(tiny_yaml), "training.epochs=1", *short, "--out", str(out)]) == 0
    assert (out / result).exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {out}/")
    assert line.endswith("cannot be drawn (no fonts)")
