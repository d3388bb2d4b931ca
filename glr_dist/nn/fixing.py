"""Replaces the modules of a model that an estimate refuses, and reports what it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from glr_dist.errors import SiteError
from glr_dist.nn.batch_norm import SharedBatchNorm
from glr_dist.nn.dropout import (
    AlphaDropout,
    ChannelAlphaDropout,
    ChannelDropout,
    Dropout,
    KeyedDropout,
    StochasticDepth,
)
from glr_dist.nn.opening import Opener, copied, plain, replaced
from glr_dist.nn.same_state import SameState

_GROUPS = 32
_CHANNELS_PER_GROUP = 8

_KEYED: dict[type[nn.Module], type[KeyedDropout]] = {
    nn.Dropout: Dropout,
    nn.Dropout1d: ChannelDropout,
    nn.Dropout2d: ChannelDropout,
    nn.Dropout3d: ChannelDropout,
    nn.AlphaDropout: AlphaDropout,
    nn.FeatureAlphaDropout: ChannelAlphaDropout,
}
_NOT_KEYED = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Change:
    """One line of the report of `fixed`.

    Attributes:
        name: name of the module in the model.
        before: the module before.
        after: the module after; None if it is unchanged and an estimate will refuse it.
        note: what is kept or lost, or the reason why the module is unchanged.
    """

    name: str
    before: str
    after: str | None
    note: str = ""

    def __str__(self) -> str:
        line = f"{self.name or '(the model)'}: {self.before} -> {self.after or 'unchanged'}"
        return f"{line} ({self.note})" if self.note else line


class Changes(tuple[Change, ...]):
    """The changes that `fixed` made, in the order of the modules; prints one line each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing to change"


def fixed(
    model: nn.Module, groups: int | None = None, *, batch_norm: Literal["group", "shared"] = "group"
) -> tuple[nn.Module, Changes]:
    """Returns a copy of a model whose modules an estimate accepts, and the changes.

    - BatchNorm becomes GroupNorm with the same affine parameters. Its statistics are those of an example, so the model
      must be trained again. With `batch_norm="shared"` it becomes `SharedBatchNorm`, with its running statistics.
    - torch's dropout modules and torchvision's StochasticDepth become keyed ones of `glr_dist.nn`.
    - Recurrent and attention modules are opened, see `opened`.
    - In-place activations become out of place.

    A module that cannot be replaced stays, and its line says why.

    Args:
        model: any module; it is not changed.
        groups: maximum number of groups of a GroupNorm of C channels, which has the largest number of groups that
            divides C; by default 32, and at least 8 channels in each.
        batch_norm: what a BatchNorm becomes, "group" or "shared".

    Raises:
        ValueError: `groups` is not at least 1, or `batch_norm` is unknown.
        SiteError: a parameter of an opened module is tied to one of another module, or is not initialized yet.

    Example:
        >>> model, changes = fixed(nn.Sequential(nn.LSTM(4, 8), nn.ReLU(inplace=True), nn.Dropout(0.1)))
        >>> print(changes)
        0: LSTM(4, 8) -> opened LSTM(4, 8) (nn.Linear sites)
        1: ReLU(inplace=True) -> ReLU() (out of place)
        2: Dropout(p=0.1, inplace=False) -> keyed Dropout(p=0.1)

    Reference:
        Wu and He, Group Normalization, ECCV 2018.
    """
    if groups is not None and groups < 1:
        raise ValueError(f"fixed: groups {groups} is not allowed: an integer >= 1")
    if batch_norm not in ("group", "shared"):
        raise ValueError(f"fixed: batch_norm {batch_norm!r} is not allowed: 'group', 'shared'")
    opener, changes = Opener(), list[Change]()

    def fix(name: str, module: nn.Module) -> nn.Module:
        before = _text(module)
        try:
            new, note = _replacement(name, module, opener, groups, batch_norm)
        except SiteError as error:
            changes.append(Change(name, before, None, str(error)))
            return module
        if note is not None:
            changes.append(Change(name, before, _text(new, before), note))
        return new

    model = opener.finish(replaced(copied(model), fix))
    return model, Changes(changes)


def _replacement(
    name: str, module: nn.Module, opener: Opener, groups: int | None, batch_norm: str
) -> tuple[nn.Module, str | None]:
    """Returns the module to use and a note, or the given one and None if there is nothing to change.

    Raises:
        SiteError: the module cannot be replaced.
    """
    if isinstance(module, _BatchNorm) and batch_norm == "shared":
        return _shared_batch_norm(name, module), "statistics of the shared pass"
    if isinstance(module, _BatchNorm):
        kept = ["affine parameters kept"] * module.affine + ["running statistics dropped"] * module.track_running_stats
        return _group_norm(name, module, groups), ", ".join(kept)
    for kind, keyed in _KEYED.items():
        if plain(name, module, kind):
            return _keyed(module, keyed), ""
    if type(module).__module__ == "torchvision.ops.stochastic_depth":
        note = "" if module.mode == "row" else "each example draws for itself, before: one draw for the batch"
        return _keyed(module, StochasticDepth), note
    if isinstance(module, _NOT_KEYED):
        raise SiteError("draws from torch's global generator and has no keyed version; use another module")
    if getattr(module, "inplace", False) is True:
        module.inplace = False  # type: ignore[assignment]
        return module, "out of place"
    new = opener(name, module)
    if new is module:
        return module, None
    if not isinstance(new, SameState):
        return new, "batch first inside"
    return new, "nn.Linear sites" + (" and keyed dropout" if getattr(module, "dropout", 0) else "")


def _shared_batch_norm(name: str, norm: _BatchNorm) -> SharedBatchNorm:
    """Returns a SharedBatchNorm with the parameters and running statistics of a BatchNorm.

    Raises:
        SiteError: it has a forward pass of its own, or no running statistics.
    """
    if not any(plain(name, norm, kind) for kind in _BATCH_NORMS):
        raise SiteError("is not one of torch's own; replace it by hand")
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        raise SiteError("has no running statistics, which evaluation would need; use batch_norm='group'")
    new = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine)
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    return new.train(norm.training)


def _group_norm(name: str, norm: _BatchNorm, groups: int | None) -> nn.GroupNorm:
    """Returns a GroupNorm with the affine parameters of a BatchNorm.

    Raises:
        SiteError: it has a forward pass of its own, or normalizing its input by examples makes no sense.
    """
    channels = norm.num_features
    if not any(plain(name, norm, kind) for kind in _BATCH_NORMS):
        raise SiteError("is not one of torch's own; replace it by hand")
    limit = max(1, min(_GROUPS, channels // _CHANNELS_PER_GROUP)) if groups is None else groups
    if isinstance(norm, nn.BatchNorm1d):  # whose inputs may be [N, C]: a group of one value would become 0
        if channels == 1:
            raise SiteError("has one channel, whose value alone cannot be normalized; leave it out")
        limit = min(limit, channels // 2)
    count = max(divisor for divisor in range(1, min(limit, channels) + 1) if channels % divisor == 0)
    new = nn.GroupNorm(count, channels, norm.eps, norm.affine, device="meta")
    new.weight, new.bias = norm.weight, norm.bias
    return new.train(norm.training)


def _keyed(module: nn.Module, kind: type[KeyedDropout]) -> KeyedDropout:
    """Returns a keyed dropout with the probability of a module.

    Raises:
        SiteError: the probability is 1.
    """
    p = module.p
    assert isinstance(p, int | float)
    if p == 1:
        raise SiteError("drops everything (p = 1); leave it out, or use p < 1")
    return kind(p).train(module.training)


def _text(module: nn.Module, before: str = "") -> str:
    """Returns a module in one line; an opened one by the text of the module before."""
    if isinstance(module, SameState):
        return f"opened {before}"
    text = f"{type(module).__name__}({module.extra_repr()})" if module._modules else repr(module)
    return f"keyed {text}" if isinstance(module, KeyedDropout) else text
