"""A run's network as an MLflow model: a graph by torch.export, loaded without this package and without unpickling."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException

from glr_dist.tracking.state import State
from glr_dist.training.trained_run import load_run

if TYPE_CHECKING:
    from mlflow.models import Model

_NAME = "model"
_EXAMPLES = 2  # more than one, or torch.export takes the batch size for a constant


def log_model(client: MlflowClient, folder: Path, state: State, answered: Callable[[], object]) -> None:
    """Sends the network of a run's newest checkpoint, and registers it if the run asks for that.

    Args:
        client: of the server.
        folder: of the run.
        state: of the run, which is on the server.
        answered: called whenever there is progress.
    """
    assert state.run_id is not None
    if state.model_id is None:
        state.change(model_id=_created(client, state.run_id))
    assert state.model_id is not None
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / _NAME
        epoch = save_model(folder, path, state)
        answered()
        client.log_model_artifacts(state.model_id, str(path))
    answered()
    client.finalize_logged_model(state.model_id, "READY")
    outputs = client.get_run(state.run_id).outputs
    if not any(output.model_id == state.model_id for output in (outputs.model_outputs if outputs else ())):
        client.log_outputs(state.run_id, [LoggedModelOutput(state.model_id, epoch)])
    if state.register_as is not None:
        _register(client, state.register_as, state.run_id, state.model_id)


def save_model(folder: Path, path: Path, state: State) -> int:
    """Writes the model into a new folder; returns the epoch that it is of."""
    import mlflow.pytorch
    from mlflow.models import Model, infer_signature

    trained = load_run(folder, "cpu")
    network = trained.net.model
    x, _ = trained.data.train.batch(slice(0, _EXAMPLES))
    described: Model = Model(run_id=state.run_id, model_uuid=state.model_id, model_id=state.model_id)
    mlflow.pytorch.save_model(
        network,
        path,
        mlflow_model=described,
        signature=infer_signature(x.numpy(), network(x).detach().numpy()),
        input_example=x.numpy(),
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "torch", "numpy")],
        serialization_format="pt2",
    )
    return trained.epoch


def _created(client: MlflowClient, run_id: str) -> str:
    """A model of the run; an earlier call may have created it without hearing of it."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", max_results=1)
    model = found[0] if found else client.create_logged_model(experiment, _NAME, run_id)
    return str(model.model_id)


def _register(client: MlflowClient, name: str, run_id: str, model_id: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if not any(version.name == name for version in client.search_model_versions(f"run_id = '{run_id}'")):
        # Its place, not "models:/ID", which a database looks up on the tracking server of the process.
        client.create_model_version(
            name, client.get_logged_model(model_id).artifact_location, run_id, model_id=model_id
        )
