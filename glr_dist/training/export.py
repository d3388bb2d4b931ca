"""Exports the network of a trained run to a file that other software loads."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn

from glr_dist.errors import ConfigError
from glr_dist.files import write_atomically
from glr_dist.outputs import call, selected
from glr_dist.text import one_line, shown
from glr_dist.training.trained_run import TrainedRun
from glr_dist.trees import Tree, mapped

_EXAMPLES = 8
_TOLERANCE = 1e-4  # relative; other software adds in another order


class _Plain(nn.Module):
    """The network as a module that takes one batch and returns its output alone."""

    def __init__(self, run: TrainedRun) -> None:
        super().__init__()
        self.model, self.output = copy.deepcopy(run.net.model).cpu().eval(), run.net.network.output

    def forward(self, x: Tree) -> Tensor:
        return selected(call(self.model, x), self.output)


def export(run: TrainedRun, path: Path) -> float:
    """Writes the network to a file, loads the file again, and compares its outputs on validation examples.

    - .pt2: a program of `torch.export`; `torch.export.load(path).module()(x)` needs torch alone.
    - .onnx: for onnxruntime and others; the input is `x` and the output `outputs`.
    - .safetensors: the state dict of the module.

    The batch may have any size. The network computes without noise.

    Args:
        run: the trained run.
        path: the file; its suffix decides.

    Returns:
        The largest difference between the outputs of the file and of the run, relative to the largest output.

    Raises:
        ConfigError: the suffix is another one, a package is missing, the network cannot be exported, or the file's
            outputs differ.
        OSError: the file cannot be written.
    """
    kinds: dict[str, Callable[[TrainedRun, Path, Tree], Tensor]] = {
        ".pt2": _program,
        ".onnx": _onnx,
        ".safetensors": _tensors,
    }
    if path.suffix not in kinds:
        raise ConfigError(f"--to: {shown(str(path))} is not allowed: a file name that ends in {', '.join(kinds)}")
    x = run.data.validation.rows(slice(0, _EXAMPLES)).batch(slice(None))[0]
    x = mapped(lambda tensor: tensor.cpu(), x)
    expected = run(x).cpu()
    partial = path.with_name(f".partial-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = kinds[path.suffix](run, partial, x)
        largest = max(expected.abs().max().item(), 1e-12)
        difference = (found - expected).abs().max().item() / largest
        if found.shape != expected.shape or not difference <= _TOLERANCE:
            raise ConfigError(f"--to: the file predicts otherwise than the run (by {difference:.2g} of the output)")
        write_atomically(path, partial.read_bytes())
    except (ConfigError, OSError):
        raise
    except Exception as error:  # of many kinds: the exporters try to translate any code
        raise ConfigError(f"--to: {run.config.model.name} cannot be exported ({one_line(error)})") from None
    finally:
        partial.unlink(missing_ok=True)
    return float(difference)


def _program(run: TrainedRun, path: Path, x: Tree) -> Tensor:
    program = torch.export.export(_Plain(run), (x,), dynamic_shapes=_any_batch(x))
    torch.export.save(program, path)
    loaded: Tensor = torch.export.load(path).module()(x)
    return loaded.detach()


def _onnx(run: TrainedRun, path: Path, x: Tree) -> Tensor:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ConfigError(f"--to: .onnx needs {error.name}; pip install 'glr_dist[export]'") from None
    if not isinstance(x, Tensor):
        raise ConfigError("--to: .onnx is not allowed: the network takes several inputs; use .pt2")
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Plain(run),
            (x,),
            path,
            dynamo=True,
            input_names=["x"],
            output_names=["outputs"],
            dynamic_shapes=_any_batch(x),
            external_data=False,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def _tensors(run: TrainedRun, path: Path, x: Tree) -> Tensor:
    try:
        from safetensors.torch import load_file, save_file
    except ImportError:
        raise ConfigError("--to: .safetensors needs safetensors; pip install 'glr_dist[export]'") from None
    plain = _Plain(run)
    save_file({name: value.clone().contiguous() for name, value in plain.model.state_dict().items()}, path)
    plain.model.load_state_dict(load_file(path))
    with torch.no_grad():
        return plain(x)  # type: ignore[no-any-return]


def _any_batch(x: Tree) -> tuple[Tree]:
    """Returns the dynamic shapes of the input: the number of examples of each tensor may change."""
    batch = torch.export.Dim("batch")
    return (mapped(lambda tensor: {0: batch}, x),)
