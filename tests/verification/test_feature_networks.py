"""Table of networks, part 3: what torch and its users do around a forward pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import Case, Function, check, headed, lanes
from test_wired_networks import JUMPS, Net, linear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glr_dist import GLR
from glr_dist.losses import binary_cross_entropy, mse, zero_one

pytestmark = pytest.mark.montecarlo


def mlp() -> nn.Sequential:
    return nn.Sequential(linear(), nn.Tanh(), linear(4, 3))


# ---------------------------------------------------------------- wrappers


class Plain(nn.Module):
    """A network that torch can script."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compiled_in_place() -> nn.Module:
    model = Plain()
    model.compile(backend="eager")
    return model


def scripted() -> nn.Module:
    return torch.jit.script(Plain())


WRAPPERS: dict[str, Case] = {
    "compiled": Case(lambda: compiled(Plain())),
    "compiled sequence": Case(lambda: compiled(mlp())),
    "compiled in place": Case(compiled_in_place),
    "compiled block": Case(lambda: nn.Sequential(linear(), compiled(nn.Tanh()), linear(4, 3))),
    "compiled block with sites": Case(lambda: nn.Sequential(linear(), nn.Tanh(), compiled(Plain()))),
    "scripted": Case(scripted, says=r"no module matches the site types.*is scripted", remedy=lambda _: Plain()),
    "scripted block": Case(
        lambda: nn.Sequential(linear(), torch.jit.script(Plain())),
        says=r"no site owns the parameter '1\.a\.weight'.*is scripted",
        remedy=lambda m: nn.Sequential(m[0], Plain()),
    ),
    "scripted activation": Case(lambda: nn.Sequential(linear(), torch.jit.script(nn.Tanh()), linear(4, 3))),
    "traced": Case(
        lambda: torch.jit.trace(Plain(), torch.randn(2, 4)),
        says=r"no module matches the site types.*is scripted",
        remedy=lambda _: Plain(),
    ),
    "DataParallel": Case(lambda: nn.DataParallel(Plain())),
    "DataParallel block": Case(lambda: nn.Sequential(linear(), nn.Tanh(), nn.DataParallel(Plain()))),
    "functorch's vmap": Case(
        lambda: Net(lambda net, x: net.b(torch.vmap(torch.tanh)(net.a(x))), a=linear(), b=linear(4, 3))
    ),
}

# ---------------------------------------------------------------- chains


class Chain(nn.Module):
    """Its method chain is not that of a network of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(), linear(4, 3)

    def chain(self, x: Tensor) -> Tensor:
        return self.a(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.chain(x))


class ChainOfFunctions(Chain):
    def chain(self) -> Any:
        return [self.a, torch.tanh, self.b]

    def forward(self, x: Tensor) -> Tensor:
        for link in self.chain():
            x = link(x)
        return x


class ChainAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(linear(), nn.Tanh())
        self.b = linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.chain(x))


class ChainList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.ModuleList([linear(), nn.Tanh(), linear(4, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for link in self.chain:
            x = link(x)
        return x


CHAINS: dict[str, Case] = {
    "chain(x)": Case(Chain),
    "chain of functions": Case(
        ChainOfFunctions,
        says=r"ChainOfFunctions\.chain\(\): contains a builtin_function_or_method that is not a submodule",
        remedy=lambda m: nn.Sequential(m.a, nn.Tanh(), m.b),
    ),
    "an attribute chain": Case(ChainAttribute),
    "a list chain": Case(ChainList),
    "a sequence inside a sequence": Case(lambda: nn.Sequential(nn.Sequential(linear(), nn.Tanh()), mlp())),
    "a block of two outputs": Case(
        lambda: nn.Sequential(
            linear(), Function(lambda x: (x.tanh(), x)), Function(lambda xs: xs[0] * xs[1]), linear(4, 3)
        ),
        says=r"block '1' returns a tuple",
        remedy=lambda m: nn.Sequential(m[0], Function(lambda x: x.tanh() * x), m[3]),
    ),
    "recurrent layers in a sequence": Case(
        lambda: nn.Sequential(nn.RNN(2, 3, batch_first=True), Function(lambda o: o[0][:, -1]), linear(3, 3)),
        (2, 2),
        says=r"block '0' returns a tuple.*let one module contain it and the block that takes its output",
        remedy=lambda m: Net(lambda net, x: net.m(x), m=m),
    ),
}

# ---------------------------------------------------------------- order of the dimensions


def time_first(net: nn.Module, x: Tensor) -> Tensor:
    """Sites see [T, N, …]."""
    h = net.a(x.transpose(0, 1)).tanh()
    return net.b(h.mean(0))


def folded(net: nn.Module, x: Tensor) -> Tensor:
    """Sites see [N·T, …]."""
    h = net.a(x.flatten(0, 1)).tanh()
    return net.b(h.view(len(x), -1))


class SequenceFirst(nn.Module):
    """As torch's own: x [T, N, …]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(2, 3), linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh().mean(0))


def batch_last(net: nn.Module, x: Tensor) -> Tensor:
    return net.b((net.a.weight @ x.T).tanh().T)


def folded_heads(net: nn.Module, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    q, k, v = net.qkv(x).chunk(3, -1)
    q, k, v = (part.reshape(n, t, 2, -1).transpose(1, 2).reshape(n * 2, t, -1) for part in (q, k, v))
    h = torch.bmm((q @ k.transpose(1, 2)).softmax(-1), v).view(n, 2, t, -1).transpose(1, 2).reshape(n, t, -1)
    return net.out(h.mean(1))


ORDERS: dict[str, Case] = {
    "time first, T = 2": Case(
        lambda: Net(time_first, a=linear(2, 3), b=linear(3, 3)),
        (2, 2),
        says=r"site 'a' returns shape \(2, 3, 3\), \[N, 2, 3\] when .*: put the examples first",
        remedy=lambda m: Net(lambda net, x: net.b(net.a(x).tanh().mean(1)), a=m.a, b=m.b),
    ),
    "time first, T = 3 = N": Case(
        lambda: Net(time_first, a=linear(2, 3), b=linear(3, 3)),
        (3, 2),
        says=r"site 'a' returns shape \(., 2, 3\) for 2 examples.*put the examples first",
        remedy=lambda m: Net(lambda net, x: net.b(net.a(x).tanh().mean(1)), a=m.a, b=m.b),
    ),
    "time first, T = 4": Case(
        lambda: Net(time_first, a=linear(2, 3), b=linear(3, 3)),
        (4, 2),
        says=r"site 'a' returns shape \(., 2, 3\) for 2 examples.*put the examples first",
        remedy=lambda m: Net(lambda net, x: net.b(net.a(x).tanh().mean(1)), a=m.a, b=m.b),
    ),
    "time first, left out": Case(
        lambda: Net(time_first, a=linear(2, 3), b=linear(3, 3)), (4, 2), {"site_names": ["b"]}
    ),
    "time folded into examples": Case(
        lambda: Net(folded, a=linear(2, 2), b=linear(4, 3)),
        (2, 2),
        says=r"site 'a' returns shape \(4, 2\).*leave it out: '!a' among the site names",
        remedied={"site_names": ["*", "!a"]},
    ),
    "attention of folded heads": Case(lambda: Net(folded_heads, qkv=linear(2, 12), out=linear(4, 3)), (2, 2)),
    "examples last inside": Case(
        lambda: Net(batch_last, a=linear(4, 3, bias=False), b=linear(3, 3)), options={"site_names": ["b"]}
    ),
    "channels last": Case(
        lambda: headed(nn.Conv2d(2, 2, 2), nn.Tanh(), x=(2, 3, 3)).to(memory_format=torch.channels_last),
        torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last),
    ),
    "not contiguous": Case(
        lambda: headed(Function(lambda x: x.transpose(1, 2)), linear(2, 2), nn.Tanh(), x=(2, 3)), (2, 3)
    ),
    "an expanded input": Case(mlp, torch.randn(3, 1, generator=torch.Generator().manual_seed(0)).double().expand(3, 4)),
}

# ---------------------------------------------------------------- inputs and outputs

PAIR = tuple(torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))


def two(net: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    return net.b((net.a(x) + other).tanh())


def returning(wrap: Any, **options: Any) -> Case:
    return Case(
        lambda: Net(lambda net, x: wrap(net.a(x), net.b(net.a(x).tanh())), a=linear(), b=linear(4, 3)), options=options
    )


def masked(net: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    return net.b((net.a(x).tanh() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


VALUES: dict[str, Case] = {
    "a tuple of inputs": Case(lambda: Net(two, a=linear(), b=linear(4, 3)), PAIR),
    "a mapping of inputs": Case(lambda: Net(two, a=linear(), b=linear(4, 3)), {"x": PAIR[0], "other": PAIR[1]}),
    "a list of inputs": Case(lambda: Net(lambda net, xs: two(net, *xs), a=linear(), b=linear(4, 3)), list(PAIR)),
    "a mask": Case(
        lambda: Net(masked, a=linear(2, 3), b=linear(3, 3)),
        {"x": torch.randn(3, 2, 2), "mask": torch.tensor([[1, 1], [1, 0], [0, 1]])},
    ),
    "a second input of one example": Case(
        lambda: Net(two, a=linear(), b=linear(4, 3)),
        (PAIR[0], PAIR[1][:1]),
        says=r"x: every tensor must hold the same number of examples in its first dimension: 1, 3",
        remedied={"x": (PAIR[0], PAIR[1][:1].expand(3, 4))},
    ),
    "a tuple of outputs": returning(lambda h, z: (z, h), output=0),
    "a mapping of outputs": returning(lambda h, z: {"h": h, "z": z}, output="z"),
    "a mapping with logits": returning(lambda h, z: {"h": h, "logits": z}),
    "an object with logits": returning(lambda h, z: SimpleNamespace(h=h, logits=z)),
    "an object with a field": returning(lambda h, z: SimpleNamespace(h=h, z=z), output="z"),
    "a list of one output": returning(lambda h, z: [z]),
    "a chosen function of the outputs": returning(lambda h, z: (h, z), output=lambda value: value[1] + value[0][:, :3]),
    "several values": Case(lambda: mlp(), y=torch.randn(3, 3, dtype=torch.float64), options={"loss": mse}),
    "several labels": Case(lambda: mlp(), y=torch.eye(3, dtype=torch.float64), options={"loss": binary_cross_entropy}),
    "classes of tokens": Case(
        lambda: nn.Sequential(linear(2, 3), nn.Tanh(), linear(3, 3)),
        (2, 2),
        y=torch.tensor([[0, 1], [0, 0], [1, -100]]),
    ),
    "classes of pixels": Case(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 3, 1)),
        (1, 2, 2),
        y=torch.tensor([0, 1, 0, 0]).view(1, 2, 2).expand(3, 2, 2),
    ),
    "errors counted": Case(mlp, options={"loss": zero_one, **JUMPS}),
}
for _name, _case in VALUES.items():
    if isinstance(_case.x, tuple) and isinstance(_case.x[0], Tensor):
        VALUES[_name] = _case

# ---------------------------------------------------------------- number formats


def half_inside(dtype: torch.dtype) -> Any:
    return lambda x: (x.to(dtype) * 2).tanh().to(x)


def autocast(net: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        h = net.a(x).tanh()
    return net.b(h.to(net.b.weight.dtype))


FORMATS: dict[str, Case] = {
    "half precision inside": Case(lambda: headed(linear(), Function(half_inside(torch.float16)))),
    "bfloat16 inside": Case(lambda: headed(linear(), Function(half_inside(torch.bfloat16)))),
    "autocast inside": Case(lambda: Net(autocast, a=linear(), b=linear(4, 3))),
    "float32 inside": Case(
        lambda: Net(
            lambda net, x: net.c(net.b(net.a(x).float()).double().tanh()), a=linear(), b=_float(), c=linear(4, 3)
        )
    ),
    "integer index inside": Case(
        lambda: headed(linear(), Function(lambda x: x + (x > 0).long()), linear()), options=JUMPS
    ),
}


class _Float(nn.Linear):
    """Stays in float32."""

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        return self


def _float() -> nn.Module:
    return _Float(4, 4)


# ---------------------------------------------------------------- caches, buffers, checkpoints


class Positions(nn.Module):
    """Builds its positional encoding at the first call, and again for longer inputs."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.buffer, self.table = buffer, None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or self.table.shape[0] < x.shape[1]:
            places = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
            self.table = torch.sin(places / 10 ** torch.arange(x.shape[2], dtype=x.dtype))
        return x + self.table[: x.shape[1]]


class LazyBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(0, 1, x.shape[1], dtype=x.dtype)
        return x + self.table


class Counting(nn.Module):
    """Counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return x.tanh()


class CountingInPython(nn.Module):
    """Counts its passes in an attribute that the outputs do not depend on."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.last = x
        return x.tanh()


class Codebook(nn.Module):
    """The nearest of four code vectors, which are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.codes[torch.cdist(x, self.codes).argmin(1)]


def grid(net: nn.Module, x: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 3), indexing="ij")
    places = torch.stack([rows, columns]).to(x).expand(len(x), 2, 3, 3)
    return net.b(net.a(torch.cat([x, places], 1)).tanh().flatten(1))


def sampled(net: nn.Module, x: Tensor) -> Tensor:
    """A spatial transformer."""
    theta = net.a(x.flatten(1)).view(-1, 2, 3)
    places = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return net.b(nn.functional.grid_sample(x, places, align_corners=False).flatten(1))


def unchecked(m: nn.Module) -> nn.Module:
    return Net(lambda net, x: net.c(net.b(net.a(x).tanh())), a=m.a, b=m.b, c=m.c)


def lazy() -> nn.Module:
    model = nn.Sequential(nn.LazyConv2d(2, 2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    model(torch.randn(1, 1, 3, 3))
    return model


def hooked(kind: str) -> nn.Module:
    model = mlp()
    if kind == "output":
        model[0].register_forward_hook(lambda module, args, output: output * 2)
    elif kind == "input":
        model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    elif kind == "backward":
        model[0].register_full_backward_hook(lambda module, grads, outputs: None)
    else:
        model[0].weight.register_hook(lambda grad: grad.clone())
    return model


def frozen_by_no_grad(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = net.a(x).tanh()
    return net.b(h)


def inference(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        h = net.a(x).tanh()
    return net.b(h)


STATE: dict[str, Case] = {
    "positions built lazily": Case(lambda: headed(linear(2, 2), Positions(False), nn.Tanh(), x=(2, 2)), (2, 2)),
    "positions built lazily in a buffer": Case(lambda: nn.Sequential(linear(), LazyBuffer(), nn.Tanh(), linear(4, 3))),
    "passes counted in a buffer": Case(
        lambda: headed(linear(), Counting()),
        says=r"'1' \(Counting\) changes its buffer '1\.passes'.*evaluation mode",
        remedy=nn.Module.eval,
    ),
    "passes counted in Python": Case(lambda: headed(linear(), CountingInPython())),
    "vector quantisation": Case(lambda: headed(linear(), Codebook()), options=JUMPS),
    "coordinates": Case(lambda: Net(grid, a=nn.Conv2d(3, 2, 2), b=linear(8, 3)), (1, 3, 3)),
    "spatial transformer": Case(lambda: Net(sampled, a=linear(9, 6), b=linear(9, 3)), (1, 3, 3)),
    "checkpointed": Case(
        says=r"'b\.0' is inside torch\.utils\.checkpoint",
        remedy=unchecked,
        build=lambda: Net(
            lambda net, x: net.c(checkpoint(net.b, net.a(x).tanh(), use_reentrant=False)),
            a=linear(),
            b=mlp(),
            c=linear(3, 3),
        ),
    ),
    "checkpointed, reentrant": Case(
        says=r"no site owns the parameter 'b\.0\.weight'.*reentrant checkpoint",
        remedy=unchecked,
        build=lambda: Net(
            lambda net, x: net.c(checkpoint(net.b, net.a(x).tanh(), use_reentrant=True)),
            a=linear(),
            b=mlp(),
            c=linear(3, 3),
        ),
    ),
    "checkpointed inside a segment": Case(
        lambda: Net(
            lambda net, x: net.c(checkpoint(net.b, net.a(x).tanh(), use_reentrant=False)),
            a=linear(),
            b=mlp(),
            c=linear(3, 3),
        ),
        options={"site_names": ["a", "c"]},
    ),
    "lazy modules after their first pass": Case(lazy, (1, 3, 3)),
    "lazy modules": Case(lambda: nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(3))),
    "a hook on the output": Case(lambda: hooked("output")),
    "a hook on the input": Case(lambda: hooked("input")),
    "a backward hook": Case(lambda: hooked("backward")),
    "a hook on a gradient": Case(lambda: hooked("gradient")),
    "no_grad inside": Case(
        lambda: Net(frozen_by_no_grad, a=linear(), b=linear(4, 3)),
        says=r"no site owns the parameter 'a\.weight'.*no_grad",
        remedy=lambda m: nn.Sequential(m.a, nn.Tanh(), m.b),
    ),
    "inference_mode inside": Case(
        lambda: Net(inference, a=linear(), b=linear(4, 3)),
        says=r"a module runs in torch\.inference_mode.*leave it out",
        remedy=lambda m: nn.Sequential(m.a, nn.Tanh(), m.b),
    ),
    "a cached value between blocks": Case(
        lambda: _carry(),
        says="each block of its chain must depend on its input alone",
        remedy=lambda m: Net(lambda net, x: net.m(x), m=m),
    ),
}


class Keeps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        return x


class Adds(nn.Module):
    def __init__(self, keeper: Keeps) -> None:
        super().__init__()
        self.keeper = [keeper]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.keeper[0].kept


def _carry() -> nn.Module:
    keeper = Keeps()
    return nn.Sequential(keeper, linear(), nn.Tanh(), linear(), Adds(keeper), linear(4, 3))


CASES: dict[str, Case] = {**WRAPPERS, **CHAINS, **ORDERS, **VALUES, **FORMATS, **STATE}


# Longer than the others.
LONG = {
    "compiled",
    "integer index inside",
    "compiled sequence",
    "checkpointed",
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("case", lanes(CASES, LONG))
def test_a_feature_gets_its_gradient_or_a_remedy_that_works(case: str) -> None:
    check(CASES[case])


# ---------------------------------------------------------------- errors of the user's own


class OwnError(Exception):
    pass


@pytest.mark.parametrize("kind", [OwnError, ValueError, RuntimeError, IndexError, TypeError])
@pytest.mark.parametrize("chained", [True, False])
def test_an_error_of_a_forward_pass_surfaces_as_itself(kind: type[Exception], chained: bool) -> None:
    def broken(x: Tensor) -> Tensor:
        raise kind("of my own")

    model = nn.Sequential(linear(), Function(broken), linear(4, 3))
    model = model if chained else Net(lambda net, x: net.m(x), m=model)
    with pytest.raises(kind, match=r"^of my own$") as raised:
        GLR(model, 0.3).estimate(torch.randn(3, 4), torch.tensor([0, 0, 1]))
    assert type(raised.value) is kind
