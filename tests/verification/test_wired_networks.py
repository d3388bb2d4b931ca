"""Table of networks, part 2: how modules are wired, and what a forward pass does beside calling modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, Function, Residual, check, headed, lanes
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.montecarlo

JUMPS = {"differences": True, "noise": 1.0}


class Net(nn.Module):
    """Modules by name, and a forward pass that is a function of the network and its input."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.pass_ = forward
        for name, module in modules.items():
            if isinstance(module, Tensor) and not isinstance(module, nn.Parameter):
                self.register_buffer(name, module)
            else:
                setattr(self, name, module)

    def forward(self, *x: Any, **named: Any) -> Any:
        return self.pass_(self, *x, **named)


def linear(inputs: int = 4, outputs: int = 4, **options: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **options)


def middle(function: Callable[[Tensor], Tensor], width: int = 4, **options: Any) -> Case:
    """A function between two linear layers."""
    return Case(lambda: headed(linear(4, width), Function(function)), options=options)


# ---------------------------------------------------------------- skips and branches


class Dense(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x).tanh()], 1)
        return x


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.gate = linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        t = self.gate(x).sigmoid()
        return t * self.plain(x).tanh() + (1 - t) * x


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x * scale


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.pool = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.two(x), self.pool(x)], 1).tanh()


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(1, 2, 2, stride=2), nn.Conv2d(2, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x).tanh()
        h = self.up(self.inner(h).tanh())
        return self.out(torch.cat([x, h], 1))


class Mixer(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm, self.tokens, self.channels = nn.LayerNorm(width), linear(tokens, tokens), linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x).tanh()


class SpatialGate(nn.Module):
    """The gate of gMLP."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width // 2), linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, -1)
        return u * self.mix(self.norm(v).transpose(1, 2)).transpose(1, 2)


class Experts(nn.Module):
    """A mixture of experts: soft, or hard with every expert run, or hard with the routed examples only."""

    def __init__(self, routing: str) -> None:
        super().__init__()
        self.routing, self.router = routing, linear(4, 2)
        self.experts, self.head = nn.ModuleList([linear(), linear()]), linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        if self.routing == "sparse":
            chosen, h = scores.argmax(1), torch.zeros_like(x)
            for i, expert in enumerate(self.experts):
                if (mask := chosen == i).any():
                    h[mask] = expert(x[mask]).tanh()
            return self.head(h)
        weights = scores.softmax(1) if self.routing == "soft" else functional.one_hot(scores.argmax(1), 2).to(x)
        h = torch.stack([self.experts[0](x).tanh() + 1, self.experts[1](x).tanh() - 1], 1)
        return self.head((weights[..., None] * h).sum(1))


class Repeated(nn.Module):
    """A block repeated: a residual flow of fixed steps, or a fixed number of iterations to an equilibrium."""

    def __init__(self, steps: int, equilibrium: bool) -> None:
        super().__init__()
        self.block, self.head, self.steps, self.equilibrium = linear(), linear(4, 3), steps, equilibrium

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x) if self.equilibrium else x
        for _ in range(self.steps):
            h = (self.block(h) + x).tanh() if self.equilibrium else h + 0.5 * self.block(h).tanh()
        return self.head(h)


class Film(nn.Module):
    """Features scaled and shifted by a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.condition, self.head = linear(), linear(2, 8), linear(4, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.condition(condition).chunk(2, 1)
        return self.head((self.features(x) * (1 + scale) + shift).tanh())


class Hyper(nn.Module):
    """A layer whose weights another layer produces."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.weights, self.head = nn.Parameter(torch.randn(2)), linear(2, 12), linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weights(self.embed.expand(len(x), 2)).view(-1, 3, 4)
        return self.head(torch.einsum("noi,ni->no", weight, x).tanh())


class HyperOnce(Hyper):
    """Its weights are produced once for the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x @ self.weights(self.embed).view(3, 4).T).tanh())


class LoRA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = linear(), linear(4, 2, bias=False), linear(2, 4, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Lora(nn.Linear):
    """An adapter inside a subclass of Linear."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.a.T @ self.b.T


def siamese() -> nn.Module:
    branch = nn.Sequential(linear(2, 3), nn.Tanh())
    return Net(
        lambda net, x: net.head((net.branch(x[:, :2]) - net.branch(x[:, 2:])).abs()), branch=branch, head=linear(3, 3)
    )


def tied() -> nn.Module:
    net = nn.Sequential(linear(), nn.Tanh(), linear(), nn.Tanh(), linear(4, 3))
    net[2].weight = net[0].weight
    return net


def language_model() -> nn.Module:
    net = nn.Sequential(nn.Embedding(5, 4), Function(lambda x: x.mean(1)), linear(), nn.Tanh(), linear(4, 5))
    net[4].weight = net[0].weight
    return net


TOKENS = torch.tensor([[1, 2, 2], [0, 3, 4], [4, 4, 1]])
GRID = (1, 4, 4)
BRANCHES: dict[str, Case] = {
    "dense connections": Case(lambda: headed(Dense(linear(4, 2), linear(6, 2)))),
    "DenseNet block": Case(
        lambda: headed(nn.Conv2d(1, 1, 1), Dense(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(2, 1, 1)), x=(1, 2, 2)),
        (1, 2, 2),
    ),
    "residual blocks": Case(lambda: headed(Residual(linear(), nn.Tanh(), linear()), Residual(linear(), nn.ReLU()))),
    "residual block before its norm": Case(lambda: headed(Residual(nn.LayerNorm(4), linear(), nn.GELU()))),
    "highway": Case(lambda: headed(Highway())),
    "squeeze and excite": Case(lambda: headed(nn.Conv2d(1, 2, 2), SqueezeExcite(2), x=(1, 3, 3)), (1, 3, 3)),
    "Inception block": Case(lambda: headed(Inception(), x=(1, 3, 3)), (1, 3, 3)),
    "U-net": Case(lambda: headed(UNet(), x=(1, 2, 2)), (1, 2, 2)),
    "depthwise separable convolution": Case(
        lambda: headed(nn.Conv2d(2, 2, 2, groups=2), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.ReLU(), x=(2, 3, 3)), (2, 3, 3)
    ),
    "MLP-Mixer": Case(lambda: headed(Mixer(2, 3), x=(2, 3)), (2, 3)),
    "gMLP": Case(lambda: headed(linear(3, 4), SpatialGate(2, 4), x=(2, 3)), (2, 3)),
    "soft mixture of experts": Case(lambda: Experts("soft")),
    "hard mixture of experts": Case(lambda: Experts("hard"), options=JUMPS),
    "sparse mixture of experts": Case(
        lambda: Experts("sparse"), says=r"'experts\.0' (ran|returns)", remedy=lambda _: Experts("hard"), remedied=JUMPS
    ),
    "a flow of fixed steps": Case(lambda: Repeated(2, False)),
    "an equilibrium of fixed iterations": Case(lambda: Repeated(3, True)),
    "hypernetwork": Case(Hyper),
    "hypernetwork, once for the batch": Case(
        HyperOnce,
        says=r"site 'weights' returns shape \(12,\) for 2 examples.*leave it out: '!weights' among the site names",
        remedied={"site_names": ["*", "!weights"]},
    ),
    "low-rank adapter": Case(lambda: headed(LoRA(), nn.Tanh())),
    "low-rank adapter in a subclass": Case(lambda: headed(Lora(), nn.Tanh())),
    "frozen first layer": Case(lambda: headed(linear().requires_grad_(False), nn.Tanh(), linear(), nn.Tanh())),
    "frozen bias": Case(lambda: Net(lambda net, x: net.b(net.a(x).tanh()), a=_without_bias(), b=linear(4, 3))),
    "siamese branches": Case(siamese),
    "tied layers": Case(tied),
    "tied embedding and head": Case(language_model, TOKENS),
    "one module three times": Case(lambda: nn.Sequential(*[linear()] * 3, linear(4, 3))),
    "one block twice": Case(lambda: nn.Sequential(*[nn.Sequential(linear(), nn.Tanh())] * 2, linear(4, 3))),
    "two heads": Case(
        lambda: Net(lambda net, x: net.a(net.body(x).tanh()) * net.b(x), body=linear(), a=linear(4, 3), b=linear(4, 3))
    ),
}


def _without_bias() -> nn.Linear:
    layer = linear()
    layer.bias.requires_grad_(False)
    return layer


# ---------------------------------------------------------------- weights used as values


def functional_layer(net: nn.Module, x: Tensor) -> Tensor:
    return net.head(functional.linear(x, net.weight, net.bias).tanh())


class Own(nn.Module):
    """A linear layer that computes its product itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = linear(), linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.linear(x, self.layer.weight, self.layer.bias).tanh())


class Around(nn.Module):
    """A layer whose weight is also a penalty, around all sites."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = linear(), linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x).tanh())
        return out + self.layer.weight.square().mean()


def parameters(count: int, *shape: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(*shape)) for _ in range(count)]


class Cosine(nn.Linear):
    """A head of normalized weights."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(functional.normalize(input), functional.normalize(self.weight)) * 3 + self.bias


class Complex(nn.Module):
    """A complex product from two real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imaginary = linear(2, 2), linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        z = torch.complex(self.real(a) - self.imaginary(b), self.real(b) + self.imaginary(a))
        return torch.view_as_real(z * z.abs().tanh()).flatten(1)


WEIGHTS: dict[str, Case] = {
    "a weight used functionally": Case(
        lambda: Net(functional_layer, weight=parameters(1, 4, 4)[0], bias=parameters(1, 4)[0], head=linear(4, 3))
    ),
    "a layer's weight used functionally": Case(
        Own,
        says=r"site 'layer' ran 0 times.*leave it out: '!layer' among the site names",
        remedied={"site_names": ["*", "!layer"]},
    ),
    "a weight that passes by the sites": Case(
        Around,
        says=r"no site owns the parameter 'layer\.weight': it reaches the loss around the sites",
        remedy=lambda model: nn.Sequential(model.layer, nn.Tanh(), model.head),
    ),
    "a trailing scale": Case(
        lambda: Net(
            lambda net, x: net.b(net.a(x).tanh()) * net.scale, a=linear(), b=linear(4, 3), scale=parameters(1, 3)[0]
        ),
        says=r"no site owns the parameter 'scale': it reaches the loss around the sites",
        remedy=lambda model: model.scale.requires_grad_(False) is None or model,
    ),
    "a trailing PReLU": Case(
        lambda: nn.Sequential(linear(), nn.Tanh(), linear(4, 3), nn.PReLU()),
        says=r"no site owns the parameter '3\.weight'",
        remedied={"sites": [nn.Linear, nn.PReLU]},
    ),
    "a trailing LayerNorm": Case(
        lambda: nn.Sequential(linear(), nn.Tanh(), linear(4, 3), nn.LayerNorm(3)),
        says=r"no site owns the parameter '3\.weight'",
        remedied={"sites": [nn.Linear, nn.LayerNorm]},
    ),
    "a trailing LayerNorm, frozen": Case(
        lambda: nn.Sequential(linear(), nn.Tanh(), linear(4, 3), nn.LayerNorm(3)),
        says=r"freeze it",
        remedy=lambda model: nn.Sequential(*model[:3], model[3].requires_grad_(False)),
    ),
    "an unused layer": Case(
        lambda: Net(lambda net, x: net.b(net.a(x).tanh()), a=linear(), b=linear(4, 3), c=linear()),
        says=r"site 'c' ran 0 times.*'!c' among the site names",
        remedy=lambda model: delattr(model, "c") or model,
    ),
    "an unused parameter": Case(
        lambda: Net(lambda net, x: net.b(net.a(x).tanh()), a=linear(), b=linear(4, 3), c=parameters(1, 2)[0]),
        says=r"no site owns the parameter 'c': no site's logits depend on it.*; freeze it",
        remedy=lambda model: model.c.requires_grad_(False) is None or model,
    ),
    "no layer at all": Case(
        lambda: Net(lambda net, x: x[:, :3] * net.scale, scale=parameters(1, 3)[0]),
        says="the network has no site: no module matches the site types and name patterns",
        remedy=lambda model: nn.Sequential(linear(), model),
        remedied={"sites": [nn.Linear, Net]},
    ),
    "a learned token": Case(
        lambda: Net(
            lambda net, x: net.head(net.body(torch.cat([net.token.expand(len(x), 1, 3), x], 1)).tanh().mean(1)),
            body=linear(3, 3),
            head=linear(3, 3),
            token=parameters(1, 1, 1, 3)[0],
        ),
        (2, 3),
    ),
    "ParameterList": Case(
        lambda: Net(
            lambda net, x: net.head((x @ net.list[0] + x @ net.list[1]).tanh()),
            list=nn.ParameterList(parameters(2, 4, 4)),
            head=linear(4, 3),
        )
    ),
    "ParameterDict": Case(
        lambda: Net(
            lambda net, x: net.head(x * net.dict["scale"] + net.dict["shift"]),
            dict=nn.ParameterDict({"scale": torch.randn(4), "shift": torch.randn(4)}),
            head=linear(4, 3),
        )
    ),
    "normalized weights": Case(lambda: nn.Sequential(linear(), nn.Tanh(), Cosine(4, 3))),
    "a complex product": Case(lambda: headed(Complex())),
    "a complex weight": Case(
        lambda: Net(
            lambda net, x: net.head(torch.view_as_real(x.to(net.w.dtype) @ net.w).flatten(1).tanh()),
            w=nn.Parameter(torch.randn(4, 2, dtype=torch.complex128)),
            head=linear(4, 3),
        )
    ),
    "a Fourier layer": middle(lambda x: torch.fft.rfft(x, dim=1).abs()),
}

# ---------------------------------------------------------------- jumps, indices, sorting


def straight_through(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def masked_top(x: Tensor) -> Tensor:
    return x * (x >= x.topk(2, 1).values[:, -1:])


JUMPING: dict[str, Case] = {
    "sign": middle(torch.sign, **JUMPS),
    "step": middle(lambda x: (x > 0).to(x), **JUMPS),
    "round": middle(lambda x: (2 * x).round(), **JUMPS),
    "straight-through rounding": middle(straight_through, **JUMPS),
    "quantised to 4 levels": middle(lambda x: (x.clamp(-1, 1) * 2).round() / 2, **JUMPS),
    "argmax": middle(lambda x: functional.one_hot(x.argmax(1), 4).to(x), **JUMPS),
    "top-k mask": middle(masked_top, **JUMPS),
    "top-k values": middle(lambda x: x.topk(2, 1).values),
    "sorting": middle(lambda x: x.sort(1).values),
    "sorting by another": middle(lambda x: x.gather(1, x.flip(1).argsort(1)), **JUMPS),
    "median": middle(lambda x: torch.cat([x.median(1, keepdim=True).values, x], 1)),
    "gather": middle(lambda x: x.gather(1, torch.tensor([[0, 2, 2]]).expand(len(x), 3))),
    "scatter": middle(lambda x: torch.zeros_like(x).scatter(1, torch.tensor([[3, 1, 0, 2]]).expand(len(x), 4), x)),
    "scatter_add": middle(
        lambda x: torch.zeros_like(x).scatter_add(1, torch.tensor([[3, 1, 3, 2]]).expand(len(x), 4), x)
    ),
    "index_select": middle(lambda x: x.index_select(1, torch.tensor([0, 0, 3]))),
    "cumulative sum": middle(lambda x: x.cumsum(1).tanh()),
    "einsum": middle(lambda x: torch.einsum("ni,nj->nij", x, x)),
    "a straight-through weight": Case(
        lambda: Net(
            lambda net, x: net.head(functional.linear(x, straight_through(net.weight)).tanh()),
            weight=parameters(1, 4, 4)[0],
            head=linear(4, 3),
        ),
        says=r"'weight' acts on the logits of site 'head' through a jump.*: freeze it, or accept",
        remedy=lambda model: model.weight.requires_grad_(False) is None or model,
    ),
    "a clipped weight": Case(
        lambda: Net(
            lambda net, x: net.head(functional.linear(x, net.weight.clamp(-0.5, 0.5)).tanh()),
            weight=parameters(1, 4, 4)[0],
            head=linear(4, 3),
        )
    ),
    "a detached branch": Case(
        lambda: Net(lambda net, x: net.b((net.a(x).detach() + x).tanh()), a=linear(), b=linear(4, 3)), options=JUMPS
    ),
    "a detached branch inside a segment": Case(
        lambda: Net(lambda net, x: net.b((net.a(x).detach() + x).tanh()), a=linear(), b=linear(4, 3)),
        options={"site_names": ["b"]},
        says=r"no site owns the parameter 'a\.weight'.*choose the sites so that its layer is one",
        remedied={"site_names": ["*"], **JUMPS},
    ),
}

# ---------------------------------------------------------------- in place


def slice_set(x: Tensor) -> Tensor:
    x[:, 0] = x[:, 1] * 2
    return x


def view_changed(x: Tensor) -> Tensor:
    x[:, 1:3].mul_(2)
    return x.tanh()


def transposed_changed(x: Tensor) -> Tensor:
    x.view(len(x), 2, 2).transpose(1, 2)[:, 0].tanh_()
    return x


def input_set(net: nn.Module, x: Tensor) -> Tensor:
    x[:, 0] = 1
    return net.b(net.a(x).tanh())


IN_PLACE: dict[str, Case] = {
    "add_": middle(lambda x: x.add_(1).tanh()),
    "mul_": middle(lambda x: x.mul_(2).tanh()),
    "relu_": middle(lambda x: x.relu_()),
    "clamp_": middle(lambda x: x.clamp_(-1, 0.5)),
    "masked_fill_": middle(lambda x: x.masked_fill_(torch.tensor([True, False, False, True]), 0.5)),
    "masked_fill_ by value": middle(lambda x: x.masked_fill_(x < 0, 0.0)),
    "a slice set": middle(slice_set),
    "a view changed": middle(view_changed),
    "a transposed view changed": middle(transposed_changed),
    "+=": Case(
        lambda: Net(_iadd, a=linear(), b=linear(), c=linear(4, 3)),
        says=r"site 'b': an operation changes in place .* x = x \+ y in place of x \+= y",
        remedy=lambda m: Net(_add, a=m.a, b=m.b, c=m.c),
    ),
    "activations in place": Case(
        lambda: headed(linear(), nn.ReLU(inplace=True), linear(), nn.SiLU(inplace=True), linear(), nn.ELU(inplace=True))
    ),
    "the input set": Case(lambda: Net(input_set, a=linear(), b=linear(4, 3))),
    "the input changed in a sequence": Case(
        lambda: nn.Sequential(nn.ReLU(inplace=True), linear(), nn.Tanh(), linear(4, 3))
    ),
    "a buffer filled in each pass": Case(lambda: Net(_filled, a=linear(), b=linear(4, 3), buffer=torch.zeros(4))),
    "a residual in place": Case(
        lambda: headed(linear(), Function(lambda x: x.add_(x.tanh())), linear(), nn.ReLU(True))
    ),
    "an output list set": middle(lambda x: torch.stack([x[:, i].mul_(i + 1) for i in range(4)], 1)),
    "a tensor filled by time": Case(lambda: Net(_by_time, cell=linear(2, 2), head=linear(6, 3)), (3, 2)),
}


def _iadd(net: nn.Module, x: Tensor) -> Tensor:
    h = net.a(x).tanh()
    h += net.b(h)
    return net.c(h)


def _add(net: nn.Module, x: Tensor) -> Tensor:
    h = net.a(x).tanh()
    h = h + net.b(h)
    return net.c(h)


def _filled(net: nn.Module, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 4)
    h[:, :2] = net.a(x)[:, :2]
    h[:, 2:] = net.a.bias[2:]
    return net.b(h.tanh())


def _by_time(net: nn.Module, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 3, 2)
    for t in range(3):
        out[:, t] = net.cell(x[:, t] + (out[:, t - 1] if t else 0)).tanh()
    return net.head(out.flatten(1))


CASES: dict[str, Case] = {**BRANCHES, **WEIGHTS, **JUMPING, **IN_PLACE}


# Longer than the others.
LONG = {
    "dense connections",
    "Inception block",
    "U-net",
    "hard mixture of experts",
    "sparse mixture of experts",
    "a trailing PReLU",
    "sorting by another",
    "a straight-through weight",
    "siamese branches",
    "a detached branch inside a segment",
    "DenseNet block",
    "a detached branch",
    "straight-through rounding",
}


@pytest.mark.parametrize("case", lanes(CASES, LONG))
def test_a_wiring_gets_its_gradient_or_a_remedy_that_works(case: str) -> None:
    check(CASES[case])
