"""The surrogate of transfer attacks: trained when first needed, then cached."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

from glr_dist import __version__
from glr_dist.claims import ClaimedError, claim
from glr_dist.config import Config
from glr_dist.data import Dataset
from glr_dist.errors import CheckpointError, ConfigError
from glr_dist.files import cache_folder
from glr_dist.runs import RunFolder, deciding
from glr_dist.text import one_line
from glr_dist.training import checkpoint
from glr_dist.training.train import train
from glr_dist.training.trained_run import TrainedRun, load_run

_PURPOSE = "surrogate"  # of the claim on a temporary folder
_GRACE = 60.0  # seconds in which a process claims the temporary folder that it has made


def trained_surrogate(config: Config, dataset: Dataset, device: str | None = None) -> TrainedRun:
    """Returns the network of a config from the cache; trains it into the cache if it is missing or damaged.

    Args:
        config: config of the surrogate.
        dataset: its loaded data; together with the config it names the folder in the cache.
        device: device of the network.

    Raises:
        ConfigError: the cache cannot be written.
    """
    folder = cache_folder() / f"surrogate-{dataset.name}-{_digest(config, dataset)}"
    try:
        _remove_abandoned(folder.parent)
        if folder.exists() or folder.is_symlink():
            try:
                return _cached(folder, config, device, dataset)
            except (CheckpointError, ConfigError) as error:
                print(f"warning: {one_line(error)}; training the surrogate again", file=sys.stderr)
                _remove(folder)
        _train(config, folder)
        return load_run(folder, device, dataset=dataset)
    except OSError as error:
        reason = f"{error.filename or folder}: cannot be written ({error.strerror})"
        raise ConfigError(f"{reason}; set GLR_CACHE to a folder for the surrogate") from None


def _digest(config: Config, dataset: Dataset) -> str:
    """Returns a digest of everything that determines the surrogate."""
    values = config.model_dump(mode="json", exclude={"execution", "tracking", "robustness", "diagnose", "code"})
    values["data"] = {key: value for key, value in values["data"].items() if key not in ("root", "download")}
    digest = hashlib.sha256(json.dumps([__version__, values], sort_keys=True).encode())
    digest.update(dataset.train.digest().encode())
    digest.update(dataset.train.targets().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _cached(folder: Path, config: Config, device: str | None, dataset: Dataset) -> TrainedRun:
    """Loads the surrogate; checks that it is complete and matches the config.

    Raises:
        ConfigError: it is incomplete, or another one.
        CheckpointError: its checkpoint is missing or damaged.
    """
    try:
        summary = RunFolder(folder).summary()
        expected, epochs = summary["params_sha256"], summary["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder}: is not a completely trained surrogate") from None
    run = load_run(folder, device, dataset=dataset)
    if (run.epoch, checkpoint.digest(run.net.state_dict())) != (epochs, expected):
        raise ConfigError(f"{folder}: its network is not the one that its summary describes")
    if deciding(run.config) != deciding(config):
        raise ConfigError(f"{folder}: its network was trained with another config")
    return run


def _train(config: Config, folder: Path) -> None:
    print(f"training the surrogate of the transfer attacks into {folder}", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two evaluations may train it at the same time. Each trains in its own folder, and the first to finish wins.
    place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        with claim(place, _PURPOSE), redirect_stdout(sys.stderr):
            train(config, place / "run")
        try:
            (place / "run").rename(folder)
        except OSError:
            if not RunFolder(folder).summary_file.exists():
                raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Removes the temporary folders of killed evaluations: those that no process claims."""
    for place in folder.glob(".surrogate-*"):
        with suppress(OSError, ClaimedError):
            if place.is_dir() and time.time() - place.stat().st_mtime > _GRACE:
                with claim(place, _PURPOSE):
                    shutil.rmtree(place)


def _remove(folder: Path) -> None:
    """Removes a surrogate in one step, since another process may look for it at the same time."""
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
        return
    place = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-")
    folder.rename(Path(place) / "run")
    shutil.rmtree(place)
