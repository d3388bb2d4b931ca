"""The line that a command prints for an error."""

from __future__ import annotations

import pytest

from glr_dist import cli


def error_line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Returns the one line of a command that must fail. An escaping exception would be a traceback."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse
        code = end.code
    captured = capsys.readouterr()
    assert code == 2, captured
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("glr-dist")
    return lines[0]
