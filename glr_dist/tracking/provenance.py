"""Provenance of a run: commit of the code, versions, user, machine; and the description of its training set."""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from glr_dist import __version__
from glr_dist.config import Data

_PACKAGES = ("torch", "ray", "numpy", "mlflow")


def provenance(folder: Path) -> dict[str, str]:
    """Returns tags with the code, versions, user and machine of a run."""
    tags = {
        "mlflow.source.name": "glr-dist train",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "host": socket.gethostname(),
        "folder": str(folder.absolute()),
        "version.python": platform.python_version(),
        "version.glr_dist": __version__,
    }
    for package in _PACKAGES:
        tags[f"version.{package}"] = metadata.version(package)
    return tags | _commit(Path(__file__).parents[1])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user of a container may have no name
        return str(os.getuid())


def _commit(package: Path) -> dict[str, str]:
    """Returns tags with the commit if git tracks this package; an installed one may lie in another checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        commit, changes = git("rev-parse", "HEAD"), git("--no-optional-locks", "status", "--porcelain", ".")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changes)).lower()}


def dataset_of(data: Data, code: str | None = None) -> dict[str, Any]:
    """Returns name, digest and shape of the training inputs, as the fields of MLflow's `Dataset`.

    Args:
        data: the section `data` of a configuration.
        code: the folder of the configuration.

    Raises:
        ConfigError: the data is missing or damaged.
    """
    from glr_dist.data import load  # torch
    from glr_dist.trees import leaves

    dataset = load(data, code)
    train = dataset.train
    sha = train.digest()
    inputs = [str(leaf.dtype).removeprefix("torch.") for leaf in leaves(train.images)]
    shape, numbers = [-1, *dataset.shape], sum(leaf[:1].numel() for leaf in leaves(train.images)) * len(train)
    return {
        "name": dataset.name,
        "digest": sha[:16],
        "source_type": "glr_dist",
        "source": json.dumps({"data": data.name, "validation": data.validation, "split_seed": data.split_seed}),
        "schema": json.dumps({"mlflow_tensorspec": {"features": json.dumps([_tensor(inputs[0], shape)])}}),
        "profile": json.dumps({"num_rows": len(train), "num_elements": numbers, "sha256": sha}),
    }


def _tensor(dtype: str, shape: list[int]) -> dict[str, Any]:
    return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}
