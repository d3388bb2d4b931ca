"""Gradient estimators: from one shared forward pass to the gradient of every layer."""

from glr_dist.estimators.conditional import Conditional
from glr_dist.estimators.estimator import Estimator
from glr_dist.estimators.joint import Joint
from glr_dist.estimators.layerwise import Layerwise
from glr_dist.estimators.pathwise import Pathwise
from glr_dist.estimators.step import Gradients, Partial, Step, WorkItem, accumulate

__all__ = ["ESTIMATORS", "Estimator", "Gradients", "Partial", "Step", "WorkItem", "accumulate"]

ESTIMATORS: dict[str, Estimator] = {
    "conditional": Conditional(),
    "layerwise": Layerwise(),
    "joint": Joint(),
    "pathwise": Pathwise(),
}
