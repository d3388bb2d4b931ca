"""glr_dist: training neural networks without backpropagation, by the generalized likelihood ratio method.

```python
net = glr_dist.GLR(model, noise=0.3, estimator="conditional", copies=100)
loss = net.estimate(x, y, loss=glr_dist.losses.zero_one)  # adds to .grad of every parameter, as backward() does
optimizer.step()
```

Names are loaded on first use: importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glr_dist import losses, nn
    from glr_dist.config import Config, load_config
    from glr_dist.errors import ConfigError, NoGradientError, SiteError, UserError
    from glr_dist.estimators import Gradients
    from glr_dist.execution.all_reduce import Replicas
    from glr_dist.execution.inline import Inline
    from glr_dist.execution.layers import Layers
    from glr_dist.glr import GLR
    from glr_dist.noise import Gaussian, Gumbel, Laplace, Logistic, Noise
    from glr_dist.streams import Key
    from glr_dist.training.train import train
    from glr_dist.training.trained_run import TrainedRun, load_run

__all__ = [
    "Config",
    "ConfigError",
    "GLR",
    "Gaussian",
    "Gradients",
    "Inline",
    "Key",
    "Gumbel",
    "Laplace",
    "Layers",
    "Logistic",
    "NoGradientError",
    "Noise",
    "Replicas",
    "SiteError",
    "TrainedRun",
    "UserError",
    "load_config",
    "load_run",
    "losses",
    "nn",
    "train",
]
__version__ = "0.4.0"

_MODULES = {
    "Config": "config",
    "ConfigError": "errors",
    "GLR": "glr",
    "Gaussian": "noise",
    "Gradients": "estimators",
    "Inline": "execution.inline",
    "Key": "streams",
    "Gumbel": "noise",
    "Laplace": "noise",
    "Layers": "execution.layers",
    "Logistic": "noise",
    "NoGradientError": "errors",
    "Noise": "noise",
    "Replicas": "execution.all_reduce",
    "SiteError": "errors",
    "TrainedRun": "training.trained_run",
    "UserError": "errors",
    "load_config": "config",
    "load_run": "training.trained_run",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"glr_dist.{_MODULES[name]}"), name)
    if name in ("losses", "nn"):
        return import_module(f"glr_dist.{name}")
    raise AttributeError(f"module 'glr_dist' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
