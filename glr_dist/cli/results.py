"""Folders that a command reads from and writes to."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PARENT = Path("runs")


def check_results_last(options: argparse.Namespace) -> None:
    """Checks that the results of a command outlive a Ray job, which runs in a copy of its working directory.

    Raises:
        ConfigError: in a Ray job, the path that the command writes to is missing or relative.
    """
    from glr_dist.errors import ConfigError
    from glr_dist.execution.address import in_ray_job

    for name in ("out", "to"):
        path = getattr(options, name, Path("/"))
        if in_ray_job() and (path is None or not path.is_absolute()):
            raise ConfigError(
                f"--{name}: a Ray job runs in a temporary copy of its working directory; give an absolute path that "
                f"outlives it, as in --{name} /shared/runs/my-run"
            )


@contextmanager
def results_folder(
    options: argparse.Namespace, stem: str, purpose: str = "run", *, holds_results: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """Claims the folder for the results: --out, else runs/STEM-NUMBER (with --resume the newest, else a new one).

    A new folder without results is removed, and so are its new parents. An empty one that existed before is empty again
    after an error.

    Args:
        options: the options of the command: `out`, and `resume` where it has one.
        stem: start of the folder's name; `{}` is the name of the configuration file.
        purpose: what the folder is claimed for.
        holds_results: returns whether a folder is worth keeping after an error that a user can fix (default: if it
            holds a visible file).

    Raises:
        ClaimedError: another process writes to the folder.
        ConfigError: the folder cannot be made.
    """
    from glr_dist.claims import claim, claim_new, newest
    from glr_dist.errors import ConfigError

    out, stem = options.out, stem.format(options.config.stem if getattr(options, "config", None) else "")
    if out is None and getattr(options, "resume", False):
        out = newest(PARENT, stem)
    made = [path for path in _with_parents(PARENT if out is None else out) if not path.exists()]
    try:
        before = None if out is None or not out.is_dir() else set(out.iterdir())
        held = claim_new(PARENT, stem, purpose) if out is None else claim(out, purpose)
    except OSError as error:
        place = PARENT.absolute() if out is None else f"--out: {out.absolute()}"
        raise ConfigError(f"{place} cannot be written ({error.strerror})") from None
    with held:
        if before is not None and any(map(_visible, before)):
            yield held.path
            return
        try:
            with _emptied_after_error(held.path, before or set(), holds_results):
                yield held.path
        finally:
            if before is None and held.path.is_dir() and not any(map(_visible, held.path.iterdir())):
                shutil.rmtree(held.path, ignore_errors=True)
                for path in made:
                    with suppress(OSError):  # it is gone already, or holds something else
                        path.rmdir()


@contextmanager
def _emptied_after_error(folder: Path, keep: set[Path], holds_results: Callable[[Path], bool] | None) -> Iterator[None]:
    """Removes all files except `keep` from a folder without results after an error that a user can fix."""
    from glr_dist.cli.stdout import OutputError
    from glr_dist.errors import UserError
    from glr_dist.execution.watch import LostRayError

    try:
        yield
    except LostRayError:  # its message says how to continue
        raise
    except (UserError, FloatingPointError, OutputError):
        if holds_results is not None and not holds_results(folder):
            for path in {folder / path.name for path in folder.iterdir()} - {folder / path.name for path in keep}:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        raise


def _with_parents(path: Path) -> list[Path]:
    return [path.absolute(), *path.absolute().parents]


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") or path.is_dir()


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
