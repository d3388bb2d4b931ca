"""The command `glr-dist`: `glr-dist train | evaluate | compare | …`. Parsing the arguments imports nothing slow."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from glr_dist.cli.parser import parse
from glr_dist.cli.results import check_results_last
from glr_dist.cli.stdout import OutputError, guarded_stdout

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the words after `glr-dist`; by default those of this process.

    Returns:
        The exit code: 0 after success, 2 after an error that one line on stderr explains, 130 after Ctrl-C or SIGTERM,
        141 if the reader of the output has gone.
    """
    options = parse(arguments)
    from glr_dist.execution.watch import exit_if_killed

    return exit_if_killed(_run(options))


def _run(options: argparse.Namespace) -> int:
    """Runs a command, and prints the error that ends it."""
    from glr_dist.errors import UserError  # its module is small; pydantic and torch are for the commands to import
    from glr_dist.execution.watch import explained
    from glr_dist.text import one_line

    try:
        with _sigterm_as_interrupt(), guarded_stdout(), explained():
            check_results_last(options)
            code: int = options.run(options)
            return code
    except (UserError, FloatingPointError) as error:
        return _failed(str(error))
    except OutputError as error:
        return 141 if isinstance(error.reason, BrokenPipeError) else _failed(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        return _failed(f"{place}{error.strerror or one_line(error)}")
    except KeyboardInterrupt:
        return 130


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM, with which a cluster stops a job, end a command as Ctrl-C does."""
    from glr_dist.execution.watch import expect_end

    def interrupt(number: int, frame: FrameType | None) -> None:
        expect_end(hurried=True)  # a scheduler may send the signal to Ray's processes too
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # outside the main thread, signals are for the process's owner to handle
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _failed(message: str) -> int:
    print(f"glr-dist: {message}", file=sys.stderr)
    return 2
