"""Opens modules that hide their products in one kernel: copies of a model made of `nn.Linear` sites."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from glr_dist.errors import SiteError
from glr_dist.nn.attention import Attention
from glr_dist.nn.cells import CELLS, Cell
from glr_dist.nn.recurrent import Recurrent
from glr_dist.nn.same_state import Ties
from glr_dist.nn.transformer import batch_first_inside


def opened(model: nn.Module) -> nn.Module:
    """Returns a copy of a model in which every product of a recurrent or attention module is an `nn.Linear` call.

    Replaces `nn.RNN`, `nn.GRU`, `nn.LSTM`, their cells and `nn.MultiheadAttention`, also inside torch's transformer
    modules, whose fused kernels are no longer used. Outputs, gradients and the keys and values of the state dict stay
    the same, up to rounding; dropout becomes keyed. Exceptions:

    - b_hh of a recurrent gate is a constant, b_ih is trained: only their sum matters. The b_hn of a GRU is trained.
    - Outputs at padded positions, where torch's fused encoder writes zeros, are those of its training mode.

    A recurrent module has one site per layer, direction and time step, `l0.gates` (a GRU three: `candidate_input` and
    `candidate_hidden` too; a projected LSTM two: `projection`); an attention has four: `q_proj`, `k_proj`, `v_proj` and
    `out_proj`. Inputs may be batch first or sequences first: sites see [N, …] either way.

    Args:
        model: any module; it is not changed.

    Raises:
        SiteError: a module to open is a subclass with a forward pass of its own, has hooks or parametrizations, or
            has parameters that are frozen or tied in part; a parameter is not initialized yet.

    Example:
        >>> model = opened(nn.TransformerEncoderLayer(8, 2, batch_first=True))
        >>> type(model.self_attn.q_proj)
        <class 'torch.nn.modules.linear.Linear'>

    Reference:
        Opacus has such modules for its per-example gradients: Yousefpour et al., Opacus: User-Friendly Differential
        Privacy Library in PyTorch, 2021.
    """
    opener = Opener()
    return opener.finish(replaced(copied(model), opener))


def copied(model: nn.Module) -> nn.Module:
    """Returns a deep copy of a model.

    Raises:
        SiteError: a parameter of a lazy module is not initialized yet.
    """
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise SiteError(f"'{name}' is not initialized yet; run the model once first")
    return copy.deepcopy(model)


def replaced(model: nn.Module, replace: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """Replaces the modules of a model in place, each before its children; returns the model.

    Args:
        model: the model.
        replace: (name, module) -> the new module, whose children are replaced in turn, or the given one.
    """
    done: dict[nn.Module, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> nn.Module:
        if module not in done:
            done[module] = new = replace(name, module)
            for child_name, child in new._modules.items():
                if child is not None:
                    new._modules[child_name] = visit(f"{name}.{child_name}".lstrip("."), child)
        return done[module]

    return visit("", model)


class Opener:
    """Opens the modules of one model; remembers which parameters they shared."""

    def __init__(self) -> None:
        self._ties = Ties()

    def __call__(self, name: str, module: nn.Module) -> nn.Module:
        """Returns an equal module made of linear layers, or the given one if it does not hide its products.

        Raises:
            SiteError: it cannot be opened.
        """
        for kind, make in _OPENED.items():
            if plain(name, module, kind):
                if getattr(module, "dropout", 0) == 1:
                    raise SiteError(f"'{name}' ({type(module).__name__}): dropout 1 drops everything; use less than 1")
                with self._ties.all_or_none():
                    return make(module, name, self._ties).train(module.training)
        return batch_first_inside(module)

    def finish(self, model: nn.Module) -> nn.Module:
        """Returns the model after its last module was opened; turns torch's fused kernels off.

        Raises:
            SiteError: a parameter that became part of another one is still used elsewhere.
        """
        self._ties.check(model)
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
        return model


def plain(name: str, module: nn.Module, kind: type[nn.Module]) -> bool:
    """Returns True if a module is of a kind of torch's and can be replaced by another one.

    Raises:
        SiteError: it is of that kind, but a replacement would lose its own forward pass, hooks or parametrizations.
    """
    if not isinstance(module, kind):
        return False
    what = f"'{name}' ({type(module).__name__})"
    if type(module).forward is not kind.forward:
        raise SiteError(
            f"{what} is a {kind.__name__} with a forward pass of its own; let it be an nn.Module that contains one"
        )
    if parametrize.is_parametrized(module):
        raise SiteError(f"{what} has parametrizations; remove them first (torch.nn.utils.parametrize)")
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        raise SiteError(f"{what} has hooks, which a replacement would lose; remove them first")
    return True


def _opened_cell(module: nn.RNNCell | nn.GRUCell | nn.LSTMCell, name: str, ties: Ties) -> Cell:
    if isinstance(module, nn.RNNCell):
        mode = f"RNN_{module.nonlinearity}".upper()
    else:
        mode = "GRU" if isinstance(module, nn.GRUCell) else "LSTM"
    outer = dict(module.named_parameters(remove_duplicate=False))
    return CELLS[mode](module.input_size, module.hidden_size, outer, name, ties)


_OPENED: dict[type[nn.Module], Callable[[Any, str, Ties], nn.Module]] = {
    nn.MultiheadAttention: Attention,
    **dict.fromkeys((nn.RNN, nn.GRU, nn.LSTM), Recurrent),
    **dict.fromkeys((nn.RNNCell, nn.GRUCell, nn.LSTMCell), _opened_cell),
}
