"""The surrogate of transfer attacks: trained when first needed, then cached."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from glr_dist import __version__
from glr_dist.config import Config
from glr_dist.data import Dataset
from glr_dist.errors import CheckpointError, ConfigError
from glr_dist.training.train import train
from glr_dist.training.trained_run import TrainedRun, load_run


def cache() -> Path:
    """Returns the cache folder: $GLR_CACHE, else glr_dist in $XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("GLR_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glr_dist"


def trained_surrogate(config: Config, dataset: Dataset, device: str | None = None) -> TrainedRun:
    """Returns the network of a config from the cache; trains it into the cache if it is not there.

    Args:
        config: config of the surrogate.
        dataset: its loaded data; together with the config it names the folder in the cache.
        device: device of the network.

    Raises:
        ConfigError: the cache cannot be written.
    """
    named = config.model_dump(mode="json", exclude={"execution", "tracking", "diagnose"})
    named["data"] = {key: value for key, value in named["data"].items() if key not in ("root", "download")}
    digest = hashlib.sha256(json.dumps([__version__, named], sort_keys=True).encode())
    for tensor in (dataset.train.images, dataset.train.labels):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    folder = cache() / f"surrogate-{dataset.name}-{digest.hexdigest()[:16]}"
    try:
        if not (folder / "summary.json").exists():
            _train(config, folder)
        try:
            return load_run(folder, device, dataset=dataset)
        except CheckpointError as error:
            print(f"warning: {error}; training the surrogate again", file=sys.stderr)
            shutil.rmtree(folder)
            _train(config, folder)
            return load_run(folder, device, dataset=dataset)
    except OSError as error:
        reason = f"{error.filename or folder}: cannot be written ({error.strerror})"
        raise ConfigError(f"{reason}; set GLR_CACHE to a folder for the surrogate") from None


def _train(config: Config, folder: Path) -> None:
    print(f"training the surrogate of the transfer attacks into {folder}", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two evaluations may train it at the same time. Each trains in its own folder, and the first to finish wins.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        with redirect_stdout(sys.stderr):
            train(config, Path(place) / "run")
        try:
            (Path(place) / "run").rename(folder)
        except OSError:
            if not (folder / "summary.json").exists():
                raise
