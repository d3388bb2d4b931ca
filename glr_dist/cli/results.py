"""Folders that a command reads from and writes to."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PARENT = Path("runs")


@contextmanager
def results_folder(options: argparse.Namespace, stem: str, purpose: str = "run") -> Iterator[Path]:
    """Claims the folder for the results: --out, else runs/STEM-NUMBER (with --resume the newest, else a new one).

    A new folder to which nothing was written is removed.

    Args:
        options: the options of the command: `out`, and `resume` where it has one.
        stem: start of the folder's name; `{}` is the name of the configuration file.
        purpose: what the folder is claimed for.

    Raises:
        ClaimedError: another process writes to the folder.
        ConfigError: the folder cannot be made.
    """
    from glr_dist.claims import claim, claim_new, newest
    from glr_dist.errors import ConfigError

    out, stem = options.out, stem.format(options.config.stem if getattr(options, "config", None) else "")
    if out is None and getattr(options, "resume", False):
        out = newest(PARENT, stem)
    fresh = not PARENT.exists()
    try:
        made = out is None or not out.exists()
        held = claim_new(PARENT, stem, purpose) if out is None else claim(out, purpose)
    except OSError as error:
        place = PARENT.absolute() if out is None else f"--out: {out.absolute()}"
        raise ConfigError(f"{place} cannot be written ({error.strerror})") from None
    with held:
        if made:
            try:
                with _discarded_if_empty(held.path):
                    yield held.path
            finally:
                if fresh and PARENT.is_dir() and not any(PARENT.iterdir()):
                    PARENT.rmdir()
        else:
            yield held.path


@contextmanager
def _discarded_if_empty(folder: Path) -> Iterator[None]:
    """Removes a folder on leaving if nothing but hidden files was written to it."""
    try:
        yield
    finally:
        if folder.is_dir() and all(path.name.startswith(".") and path.is_file() for path in folder.iterdir()):
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


def check_runs(folders: Sequence[Path]) -> None:
    """Checks, before torch is imported, that the folders hold runs.

    Raises:
        ConfigError: names the first folder that does not.
    """
    from glr_dist.errors import ConfigError
    from glr_dist.runs import RunFolder

    if not folders:
        raise ConfigError("RUN_DIR: no run is given, only overrides")
    for folder in folders:
        if not RunFolder(folder).exists:
            raise ConfigError(f"{folder}: is not a run of glr-dist train (config.yaml is missing)")
