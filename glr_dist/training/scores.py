"""Scores of the noise-free network on a split: its mean loss, its accuracy, and the metrics that a run asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from glr_dist.checks import all_finite
from glr_dist.config import Training
from glr_dist.data import Split
from glr_dist.errors import ConfigError
from glr_dist.execution.reproducible import reproducible
from glr_dist.glr import GLR
from glr_dist.losses import IGNORED, Loss, zero_one
from glr_dist.text import one_line
from glr_dist.trees import Tree, leaves

_BATCH = 1000  # examples per piece of work

LOWER_IS_BETTER = ("loss", "mae")


def scores(net: GLR, split: Split, loss: Loss, metrics: Sequence[str] = ()) -> dict[str, float]:
    """Returns the scores of the noise-free network, which is put in evaluation mode.

    Args:
        net: the network.
        split: inputs and targets, on the network's device.
        loss: the per-example loss.
        metrics: names of `METRICS`.

    Returns:
        "loss"; "accuracy" if the targets are class numbers, for tokens and pixels the mean over those of an example;
        and the metrics, `recall` as one number for each class, "recall/0", ….

    Raises:
        ConfigError: a metric does not fit the targets.
        FloatingPointError: the outputs are not finite.
    """
    net.eval()
    labels = split.labels
    classes = isinstance(labels, Tensor) and labels.dtype is torch.int64

    def of_batch(start: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        with torch.no_grad():
            x, y = split.batch(slice(start, start + _BATCH))
            outputs = net(x)
            if not all_finite(outputs):
                raise FloatingPointError(f"the network's outputs are not finite after step {net.step}")
            wrong = zero_one(outputs, y).double().sum() if classes else outputs.new_zeros(())
            return wrong, loss(outputs, y).double().sum(), (outputs.cpu(), y.cpu()) if metrics else None

    with reproducible():
        parts = list(net.executor.map(of_batch, range(0, len(split), _BATCH)))
    wrong = torch.stack([part[0] for part in parts]).sum().item()
    total = torch.stack([part[1] for part in parts]).sum().item()
    found = {"accuracy": (len(split) - wrong) / len(split)} if classes else {}
    found["loss"] = total / len(split)
    kept = [part[2] for part in parts if part[2] is not None]
    if kept:
        outputs, targets = (torch.cat([pair[i] for pair in kept]) for i in range(2))
        for name in metrics:
            found |= _metric(name, outputs, targets)
    return found


def check_metrics(training: Training, split: Split, *held_out: Split) -> None:
    """Refuses metrics that do not exist for the targets of the training part, or of the parts that are measured.

    Raises:
        ConfigError: names the field.
    """
    labels = split.labels
    classes = isinstance(labels, Tensor) and labels.dtype is torch.int64
    one_each = classes and labels.dim() == 1
    for name in training.metrics:
        fits = {
            "mae": not classes,
            "r2": not classes,
            "top5_accuracy": one_each,
            "recall": True,
            "f1": True,
            "auc": True,
        }
        if not fits[name]:
            kind = "one class for each example" if name == "top5_accuracy" else "real values"
            raise ConfigError(f"training.metrics: '{name}' is not allowed: the targets are not {kind}")
        if name in ("f1", "auc", "recall") and not classes and not _are_labels(split.targets()):
            raise ConfigError(
                f"training.metrics: '{name}' is not allowed: the targets are neither classes nor labels 0 and 1"
            )
        for part in held_out if name == "auc" else ():
            if one_each and len(torch.unique(part.targets())) < 2:
                raise ConfigError(
                    "training.metrics: 'auc' is not allowed: the validation or test examples are all of one class; "
                    "hold out more with data.validation and data.test"
                )
    if training.early_stopping is not None and training.early_stopping.metric == "accuracy" and not classes:
        raise ConfigError(
            "training.early_stopping.metric: 'accuracy' is not allowed: the targets are not classes; use 'loss', or a "
            "metric of training.metrics"
        )


def _are_labels(targets: Tree) -> bool:
    """True if all targets are 0 or 1."""
    return all(bool(((leaf == 0) | (leaf == 1)).all()) for leaf in leaves(targets))


def _metric(name: str, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    try:
        values = METRICS[name](outputs, targets)
    except ValueError as error:
        raise ConfigError(f"training.metrics: '{name}' does not fit the targets ({one_line(error)})") from None
    return values if isinstance(values, dict) else {name: float(values)}


def _classes(outputs: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predicted and the true class numbers, one for each example, token or pixel that counts."""
    if targets.dtype is not torch.int64:
        if targets.shape == outputs.shape:  # several labels
            return (outputs > 0).int().numpy(), targets.int().numpy()
        raise ValueError("they are not classes")
    if outputs.dim() > 2 and outputs.shape[:-1] != targets.shape:
        outputs = outputs.movedim(1, -1)
    counted = targets != IGNORED
    return outputs.argmax(-1)[counted].numpy(), targets[counted].numpy()


def _f1(outputs: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import f1_score

    predicted, true = _classes(outputs, targets)
    return float(f1_score(true, predicted, average="macro", zero_division=0))


def _recall(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    from sklearn.metrics import recall_score

    predicted, true = _classes(outputs, targets)
    number = outputs.shape[-1] if predicted.ndim == 1 else predicted.shape[1]
    each = recall_score(true, predicted, average=None, labels=range(number), zero_division=0)
    return {f"recall/{index}": float(value) for index, value in enumerate(each)}


def _auc(outputs: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    if targets.dtype is not torch.int64:
        return float(roc_auc_score(targets.numpy(), outputs.numpy(), average="macro"))
    if targets.dim() != 1:
        raise ValueError("they are not one class for each example")
    probabilities = outputs.double().softmax(-1).numpy()
    if outputs.shape[1] == 2:
        return float(roc_auc_score(targets.numpy(), probabilities[:, 1]))
    # One class against the others, as scikit-learn averages it; a class that the examples lack does not count.
    present = torch.unique(targets).tolist()
    return float(np.mean([roc_auc_score(targets.numpy() == number, probabilities[:, number]) for number in present]))


def _top5(outputs: Tensor, targets: Tensor) -> float:
    if targets.dtype is not torch.int64 or targets.dim() != 1:
        raise ValueError("they are not one class for each example")
    best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
    return float((best == targets[:, None]).any(1).double().mean())


def _values(outputs: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if targets.dtype is torch.int64 or targets.shape != outputs.shape:
        raise ValueError("they are not real values")
    return targets.flatten(1).double().numpy(), outputs.flatten(1).double().numpy()


def _mae(outputs: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(*_values(outputs, targets)))


def _r2(outputs: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import r2_score

    return float(r2_score(*_values(outputs, targets)))


# Outputs and targets of all examples -> a number, or several by name. Names are those of `config.METRICS`.
METRICS: dict[str, Callable[[Tensor, Tensor], float | dict[str, float]]] = {
    "top5_accuracy": _top5,
    "f1": _f1,
    "auc": _auc,
    "recall": _recall,
    "mae": _mae,
    "r2": _r2,
}
