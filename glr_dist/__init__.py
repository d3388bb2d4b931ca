"""glr_dist: training neural networks without backpropagation, by the generalized likelihood ratio method.

```python
net = glr_dist.GLR(model, noise=glr_dist.Gaussian(0.3), estimator="conditional", copies=100)
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
    from glr_dist.errors import UserError
    from glr_dist.estimators import Gradients
    from glr_dist.glr import GLR
    from glr_dist.noise import Gaussian, Laplace, Logistic

__all__ = ["GLR", "Gaussian", "Gradients", "Laplace", "Logistic", "UserError", "losses", "nn"]
__version__ = "0.4.0"

_HOMES = {
    "GLR": "glr_dist.glr",
    "Gradients": "glr_dist.estimators",
    "Gaussian": "glr_dist.noise",
    "Laplace": "glr_dist.noise",
    "Logistic": "glr_dist.noise",
    "UserError": "glr_dist.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in ("losses", "nn"):
        return import_module(f"glr_dist.{name}")
    raise AttributeError(f"module 'glr_dist' has no attribute '{name}'")
