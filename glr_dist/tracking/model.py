"""A run's network as an MLflow model: a torch.export graph that loads without this package and without unpickling."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from torch import Tensor

from glr_dist.errors import TrackingError
from glr_dist.tracking.state import State
from glr_dist.training.trained_run import load_run

if TYPE_CHECKING:
    from mlflow.models import Model

_FOLDER = "model"
_REFUSED = re.compile(r"[/:.%\"']")  # in names of models
_EXAMPLES = 2  # with one example, torch.export would treat the batch size as a constant


def log_model(
    client: MlflowClient, folder: Path, state: State, local_work: Callable[[], AbstractContextManager[object]]
) -> None:
    """Uploads the network of a run's newest checkpoint, and registers it if the configuration asks for it.

    Args:
        client: the client of the server.
        folder: the run's folder.
        state: the state of its tracking; the run exists on the server.
        local_work: returns a context for the export; its time does not count as waiting for the server.
    """
    assert state.run_id is not None
    if state.model_id is None:
        state.change(model_id=_create(client, state.run_id))
    assert state.model_id is not None
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / _FOLDER
        with local_work():
            epoch = save_model(folder, path, state)
        client.log_model_artifacts(state.model_id, str(path))
    client.finalize_logged_model(state.model_id, "READY")
    outputs = client.get_run(state.run_id).outputs
    if not any(output.model_id == state.model_id for output in (outputs.model_outputs if outputs else ())):
        client.log_outputs(state.run_id, [LoggedModelOutput(state.model_id, epoch)])
    if state.register_as is not None:
        _register(client, state.register_as, state.run_id, state.model_id)


def save_model(folder: Path, path: Path, state: State) -> int:
    """Writes the model into a new folder and returns the epoch of its checkpoint."""
    import mlflow.pytorch
    from mlflow.models import Model, infer_signature

    trained = load_run(folder, "cpu")
    network = trained.net.model
    x, _ = trained.data.train.rows(slice(0, _EXAMPLES)).batch(slice(None))
    if not isinstance(x, Tensor):
        raise TrackingError(f"{folder}: its network takes several inputs, which MLflow cannot store as one array")
    description: Model = Model(run_id=state.run_id, model_uuid=state.model_id, model_id=state.model_id)
    mlflow.pytorch.save_model(
        network,
        path,
        mlflow_model=description,
        signature=infer_signature(x.numpy(), network(x).detach().numpy()),
        input_example=x.numpy(),
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "torch", "numpy")],
        serialization_format="pt2",
    )
    return trained.epoch


def _create(client: MlflowClient, run_id: str) -> str:
    """Returns the id of the model, named after its run; an earlier call may have created it unnoticed."""
    run = client.get_run(run_id).info
    found = client.search_logged_models([run.experiment_id], f"source_run_id = '{run_id}'", max_results=1)
    name = _REFUSED.sub("_", run.run_name or "") or _FOLDER
    model = found[0] if found else client.create_logged_model(run.experiment_id, name, run_id)
    return str(model.model_id)


def _register(client: MlflowClient, name: str, run_id: str, model_id: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if not any(version.name == name for version in client.search_model_versions(f"run_id = '{run_id}'")):
        # Its location, not "models:/ID": a database would look that up on the process's default tracking server.
        client.create_model_version(
            name, client.get_logged_model(model_id).artifact_location, run_id, model_id=model_id
        )
