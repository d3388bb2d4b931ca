"""Opened modules against torch's own: outputs, gradients, states, and estimates of the engine."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from glr_dist import GLR, SiteError, UserError
from glr_dist.execution.inline import Inline
from glr_dist.nn import Dropout, opened
from glr_dist.rules import direct_rule

N, T, S, IN, H, E = 3, 4, 5, 4, 6, 8  # examples, steps, keys, inputs, hidden units, features


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tensors(value: Any) -> list[Tensor]:
    """The tensors of nested tuples, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [tensor for part in value for tensor in tensors(part)]


def error(found: Any, expected: Any) -> float:
    """Largest difference, relative to the largest value."""
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in pairs)


def outer_gradients(new: nn.Module) -> dict[str, Tensor]:
    """The gradients of an opened module under the keys of the module that it replaces."""
    with torch.no_grad():
        holder = copy.deepcopy(new)
        for buffer in holder.buffers():
            buffer.zero_()
        for mine, other in zip(holder.parameters(), new.parameters(), strict=True):
            mine.copy_(torch.zeros_like(mine) if other.grad is None else other.grad)
    return holder.state_dict()


def assert_equal(old: nn.Module, *args: Any, tolerance: float = 1e-12, **kwargs: Any) -> nn.Module:
    """Compares outputs, gradients of parameters and inputs, and states in both directions; returns the new module."""
    new = opened(old)
    assert list(new.state_dict()) and set(new.state_dict()) == set(old.state_dict())
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in new.state_dict().items())
    given = [x for x in args if isinstance(x, Tensor) and x.is_floating_point()]
    slopes = []
    for module in (old, new):
        for tensor in given:
            tensor.requires_grad_().grad = None
        module.zero_grad()
        outputs = tensors(module(*args, **kwargs))
        stream = torch.Generator().manual_seed(1)
        weights = [torch.randn(out.shape, generator=stream, dtype=out.dtype) for out in outputs]
        sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True)).backward()
        slopes.append([x.grad for x in given])
        for tensor in given:
            tensor.requires_grad_(False)
    with torch.no_grad():
        assert error(new(*args, **kwargs), old(*args, **kwargs)) < tolerance
    assert error(slopes[1], slopes[0]) < tolerance * 10
    found = outer_gradients(new)
    for key, parameter in old.named_parameters():
        if "bias_hh" not in key:  # in part a constant
            assert error(found[key] + 1, parameter.grad + 1) < tolerance * 10, key
    return new


# ---------------------------------------------------------------- recurrent layers

LAYERS = [nn.RNN, nn.GRU, nn.LSTM]
SHAPES = {
    "plain": {},
    "deep": {"num_layers": 3},
    "both": {"bidirectional": True},
    "deep, both": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False, "num_layers": 2},
    "batch first": {"batch_first": True, "num_layers": 2, "bidirectional": True},
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("initial", ["zeros", "given", "unbatched"])
def test_a_recurrent_layer_is_the_same(kind: type[nn.RNNBase], shape: str, initial: str) -> None:
    _assert_layer(kind(IN, H, **SHAPES[shape]).double(), initial)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_projected_lstm_and_a_relu_rnn_are_the_same(shape: str) -> None:
    _assert_layer(nn.LSTM(IN, H, proj_size=2, **SHAPES[shape]).double(), "given")
    _assert_layer(nn.RNN(IN, H, nonlinearity="relu", **SHAPES[shape]).double(), "given")


def _assert_layer(layer: nn.RNNBase, initial: str) -> None:
    sizes = (N, T) if layer.batch_first else (T, N)
    x = torch.randn(*(sizes if initial != "unbatched" else (T,)), IN, dtype=torch.float64)
    hx: Any = None
    if initial != "zeros":
        batch = (N,) if initial == "given" else ()
        cells = layer.num_layers * (1 + layer.bidirectional)
        hx = torch.randn(cells, *batch, layer.proj_size or H, dtype=torch.float64)
        if isinstance(layer, nn.LSTM):
            hx = hx, torch.randn(cells, *batch, H, dtype=torch.float64)
    assert_equal(layer, x, hx)


@pytest.mark.parametrize(
    "make", [nn.RNNCell, nn.GRUCell, nn.LSTMCell, lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k)]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(N,), ()])
@pytest.mark.parametrize("given", [True, False])
def test_a_recurrent_cell_is_the_same(make: Any, bias: bool, batch: tuple[int, ...], given: bool) -> None:
    cell = make(IN, H, bias=bias).double()
    h = torch.randn(*batch, H, dtype=torch.float64)
    hx = (h, h.sin()) if isinstance(cell, nn.LSTMCell) else h
    assert_equal(cell, torch.randn(*batch, IN, dtype=torch.float64), *([hx] if given else []))


@pytest.mark.parametrize("kind", LAYERS)
def test_in_single_precision_a_layer_is_the_same_up_to_rounding(kind: type[nn.RNNBase]) -> None:
    assert_equal(kind(IN, H, 2, bidirectional=True), torch.randn(T, N, IN), tolerance=1e-6)


@pytest.mark.parametrize(
    ("kind", "calls"),
    [(nn.RNN, {"gates"}), (nn.LSTM, {"gates"}), (nn.GRU, {"gates", "candidate_input", "candidate_hidden"})],
)
def test_each_time_step_is_a_call_with_the_examples_first(kind: type[nn.RNNBase], calls: set[str]) -> None:
    layer = opened(kind(IN, H, 2, bidirectional=True))
    seen: list[tuple[str, int]] = []
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            assert type(module) is nn.Linear
            module.register_forward_hook(lambda _, __, z, name=name: seen.append((name, len(z))))
    layer(torch.randn(T, N, IN))
    cells = ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert sorted(seen) == sorted((f"{cell}.{call}", N) for cell in cells for call in calls for _ in range(T))


def test_dropout_between_layers_is_keyed() -> None:
    layer = opened(nn.LSTM(IN, H, 3, dropout=0.5))
    assert [type(module) for module in layer.dropouts] == [Dropout, Dropout]
    with pytest.raises(RuntimeError, match=r"call \.eval"):
        layer(torch.randn(T, N, IN))
    assert_equal(nn.LSTM(IN, H, 3, dropout=0.5).eval(), torch.randn(T, N, IN), tolerance=1e-6)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            (pack_padded_sequence(torch.zeros(T, 2, IN), [T, 2]),),
            "'rnn' .LSTM.: packed sequences are not supported; pass",
        ),
        ((torch.zeros(T, N, IN + 1),), r"the input has shape \[4, 3, 5\], must be a sequence of 4 features"),
        ((torch.zeros(0, N, IN),), "the sequence is empty"),
        ((torch.zeros(T, N, IN), torch.zeros(1, N, H)), r"the initial state has shape"),
        ((torch.zeros(T, N, IN), (torch.zeros(2, N, H), torch.zeros(2, N, H))), r"the initial state has shape"),
    ],
)
def test_a_recurrent_layer_refuses_other_inputs(args: tuple[Any, ...], words: str) -> None:
    model = opened(nn.ModuleDict({"rnn": nn.LSTM(IN, H)}))
    with pytest.raises(UserError, match=words) as caught:
        model["rnn"](*args)
    assert "\n" not in str(caught.value)


def test_attributes_that_models_read_stay() -> None:
    for old in (nn.LSTM(IN, H, 2, proj_size=2, bidirectional=True), nn.GRU(IN, H, batch_first=True)):
        new = opened(old)
        new.flatten_parameters()
        for name in old.__constants__:
            assert getattr(new, name) == getattr(old, name)
    attention = nn.MultiheadAttention(E, 2, 0.1, kdim=3)
    for name in ("embed_dim", "num_heads", "head_dim", "kdim", "vdim", "dropout", "batch_first", "add_zero_attn"):
        assert getattr(opened(attention), name) == getattr(attention, name)


# ---------------------------------------------------------------- attention

ATTENTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "other sizes": {"kdim": 3, "vdim": 5},
    "other sizes, no bias": {"kdim": 3, "vdim": 5, "bias": False, "batch_first": True},
    "bias of keys and values": {"add_bias_kv": True, "batch_first": True},
    "zero position": {"add_zero_attn": True},
    "all": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 3, "vdim": 5, "batch_first": True},
}


def _masks(heads: int, batch: int) -> dict[str, dict[str, Any]]:
    barred = torch.rand(T, S) < 0.4
    barred[:, 0] = False
    own = torch.rand(batch * heads, T, S) < 0.4
    own[..., 1] = False
    padding = torch.arange(S).expand(batch, S) >= torch.tensor([3, 5, 4])[:batch, None]
    return {
        "none": {},
        "bool": {"attn_mask": barred},
        "float": {"attn_mask": torch.randn(T, S, dtype=torch.float64)},
        "of each head": {"attn_mask": own},
        "padding": {"key_padding_mask": padding},
        "float padding": {"key_padding_mask": torch.randn(batch, S, dtype=torch.float64)},
        "both": {"attn_mask": barred, "key_padding_mask": padding},
    }


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("mask", list(_masks(2, N)))
@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}], ids=str)
def test_an_attention_is_the_same(kind: str, mask: str, weights: dict[str, bool]) -> None:
    options = ATTENTIONS[kind]
    attention = nn.MultiheadAttention(E, 2, **options).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    first = options.get("batch_first", False)
    sizes = [(T, E), (S, options.get("kdim", E)), (S, options.get("vdim", E))]
    inputs = [torch.randn(*((N, length) if first else (length, N)), width).double() for length, width in sizes]
    new = assert_equal(attention, *inputs, **_masks(2, N)[mask], **weights)
    assert all(type(getattr(new, f"{name}_proj")) is nn.Linear for name in ("q", "k", "v", "out"))
    if mask in ("none", "bool", "float"):  # without a batch
        x = [tensor.select(0 if first else 1, 0).clone() for tensor in inputs]
        assert_equal(attention, *x, **_masks(2, 1)[mask], **weights)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_causal_self_attention_is_the_same(weights: bool, training: bool) -> None:
    attention = nn.MultiheadAttention(E, 2, batch_first=True).double().train(training)
    x = torch.randn(N, T, E, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    assert_equal(attention, x, x, x, attn_mask=mask, is_causal=True, need_weights=weights)


def test_a_query_without_keys_has_zero_weights() -> None:
    attention = opened(nn.MultiheadAttention(E, 2, batch_first=True))
    x = torch.randn(1, T, E, requires_grad=True)
    outputs, weights = attention(x, x, x, key_padding_mask=torch.ones(1, T, dtype=torch.bool))
    assert torch.equal(weights, torch.zeros(1, T, T))
    outputs.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": torch.zeros(1, T, E), "value": torch.zeros(1, T, E)}, r"\[3, 4, 8\], \[1, 4, 8\], .* do not fit"),
        ({"key": torch.zeros(N, T + 1, E)}, "do not fit"),
        ({"attn_mask": torch.zeros(T, T + 1)}, r"attn_mask has shape \[4, 5\], must have \[4, 4\] or \[6, 4, 4\]"),
        ({"key_padding_mask": torch.zeros(T, N)}, r"key_padding_mask has shape \[4, 3\], must have \[3, 4\]"),
        ({"attn_mask": torch.zeros(T, T, dtype=torch.long)}, "must be bool or floating point"),
        ({"is_causal": True}, "pass the causal attn_mask"),
    ],
)
def test_an_attention_refuses_other_masks(options: dict[str, Any], words: str) -> None:
    x = torch.zeros(N, T, E)
    with pytest.raises(UserError, match=words):
        opened(nn.MultiheadAttention(E, 2, batch_first=True))(x, **{"key": x, "value": x, **options})


# ---------------------------------------------------------------- transformers

LAYOUTS = list(itertools.product([True, False], [True, False], [True, False]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize(("batch_first", "norm_first", "bias"), LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_transformers_are_the_same(batch_first: bool, norm_first: bool, bias: bool, training: bool) -> None:
    options: dict[str, Any] = {
        "batch_first": batch_first,
        "norm_first": norm_first,
        "bias": bias,
        "dtype": torch.float64,
    }
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    padding = torch.zeros(N, S, dtype=torch.float64)
    padding[0, 3:] = -torch.inf
    memory, x = (torch.randn(*((N, L) if batch_first else (L, N)), E, dtype=torch.float64) for L in (S, T))
    sizes = E, 2, 10, 0.0
    encoder_layer = nn.TransformerEncoderLayer(*sizes, activation="gelu", **options)
    decoder_layer = nn.TransformerDecoderLayer(*sizes, **options)
    plain = {"enable_nested_tensor": False}
    both = nn.Transformer(E, 2, 2, 1, 10, 0.0, **options)
    for module, args, kwargs in (
        (encoder_layer, (x,), {}),
        (encoder_layer, (x,), {"src_mask": mask, "is_causal": True}),
        (encoder_layer, (memory,), {"src_key_padding_mask": padding}),
        (nn.TransformerEncoder(encoder_layer, 2, nn.LayerNorm(E).double(), **plain), (x,), {"mask": mask}),
        (decoder_layer, (x, memory), {"memory_key_padding_mask": padding}),
        (nn.TransformerDecoder(decoder_layer, 2), (x, memory), {"tgt_mask": mask}),
        (both, (memory, x), {"tgt_mask": mask, "tgt_is_causal": True}),
    ):
        new = assert_equal(module.train(training), *args, **kwargs, tolerance=1e-11)
        assert not any(isinstance(part, nn.MultiheadAttention) for part in new.modules())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fused_kernels_of_evaluation_are_not_used() -> None:
    layer = nn.TransformerEncoderLayer(E, 2, 10, batch_first=True)
    old = nn.TransformerEncoder(layer, 2).eval()
    assert old.use_nested_tensor
    new = opened(old)
    calls: list[str] = []
    for name, module in new.named_modules():
        if isinstance(module, nn.Linear):
            original = module.forward
            module.forward = lambda x, name=name, original=original: (calls.append(name), original(x))[1]  # no hook
    padding = torch.tensor([[False] * S, [False] * 3 + [True] * 2])
    x = torch.randn(2, S, E)
    with torch.no_grad():
        found, expected = new(x, src_key_padding_mask=padding), old(x, src_key_padding_mask=padding)
    assert len(calls) == len(set(calls)) == 12
    assert error(found[~padding], expected[~padding]) < 1e-6
    assert old.use_nested_tensor


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_a_transformer_of_sequences_first_shows_examples_first() -> None:
    model = opened(nn.Transformer(E, 2, 1, 1, 10))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, __, z: lengths.append(len(z)))
    lengths: list[int] = []
    model.eval()(torch.randn(S, N, E), torch.randn(T, N, E))
    assert lengths == [N] * 16


# ---------------------------------------------------------------- states, ties, modes

MODULES = {
    "rnn": lambda: nn.RNN(IN, H, 2, bidirectional=True),
    "gru": lambda: nn.GRU(IN, H, 2, bias=False),
    "gru, bias": lambda: nn.GRU(IN, H, 2),
    "lstm": lambda: nn.LSTM(IN, H, proj_size=2),
    "cell": lambda: nn.LSTMCell(IN, H),
    "gru cell": lambda: nn.GRUCell(IN, H),
    "attention": lambda: nn.MultiheadAttention(E, 2, add_bias_kv=True),
    "other sizes": lambda: nn.MultiheadAttention(E, 2, kdim=3),
    "transformer": lambda: nn.Transformer(E, 2, 1, 1, 10, batch_first=True),
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_states_load_in_both_directions(kind: str, nested: bool, assign: bool) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Identity(), MODULES[kind]()) if nested else MODULES[kind]()

    old, other, back = make(), make(), make()
    new = opened(other)
    new.load_state_dict(old.state_dict(), assign=assign)
    back.load_state_dict(new.state_dict(), assign=assign)
    for key, value in old.state_dict().items():
        assert torch.equal(new.state_dict()[key], value)
        assert torch.equal(back.state_dict()[key], value)
    assert torch.equal(other.state_dict()[key], opened(other).state_dict()[key]), "the given model changed"


@pytest.mark.parametrize("kind", MODULES)
def test_states_that_do_not_fit_are_named_as_torch_names_them(kind: str) -> None:
    new = opened(nn.ModuleDict({"a": MODULES[kind]()}))
    state = new.state_dict()
    key = next(key for key in state if "weight" in key)
    short = {name: value for name, value in state.items() if name != key}
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{key}"\.'):
        new.load_state_dict(short)
    before = state[key].clone()
    found = new.load_state_dict({name: value + 1 for name, value in short.items()}, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == ([key], [])
    assert torch.equal(new.state_dict()[key], before)
    with pytest.raises(RuntimeError, match=f"size mismatch for {key}"):
        new.load_state_dict({**state, key: state[key][:-1]})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "a.other"'):
        new.load_state_dict({**state, "a.other": before})


@pytest.mark.parametrize("kind", MODULES)
def test_an_opened_module_is_copied_pickled_moved_and_switched(kind: str) -> None:
    old = MODULES[kind]()
    new = opened(old)
    for other in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert all(torch.equal(value, new.state_dict()[key]) for key, value in other.state_dict().items())
    assert {value.dtype for value in new.double().state_dict().values()} == {torch.float64}
    assert all(value.is_meta for value in new.to("meta").state_dict().values())
    assert all(module.training for module in opened(old.train()).modules())
    assert not any(module.training for module in opened(old.eval()).modules())
    assert all(parameter.requires_grad for parameter in new.parameters())
    assert not any(parameter.requires_grad for parameter in opened(old.requires_grad_(False)).parameters())
    before = torch.get_rng_state()
    opened(old)
    assert torch.equal(torch.get_rng_state(), before), "opening draws from torch's global generator"


def test_shared_modules_and_tied_parameters_stay_shared() -> None:
    attention, twin = nn.MultiheadAttention(E, 2), nn.MultiheadAttention(E, 2)
    twin.in_proj_weight, twin.out_proj.weight = attention.in_proj_weight, attention.out_proj.weight
    model = opened(nn.ModuleList([attention, twin, attention]))
    assert model[2] is model[0]
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert getattr(model[0], name).weight is getattr(model[1], name).weight
        assert getattr(model[0], name).bias is not getattr(model[1], name).bias


def _lstm(**changes: Any) -> nn.LSTM:
    layer = nn.LSTM(H, H)
    for name, value in changes.items():
        if isinstance(value, bool):
            getattr(layer, name).requires_grad_(value)
        else:
            setattr(layer, name, getattr(layer, value))
    return layer


def _half_tied(model: type[nn.Module]) -> nn.Module:
    layer, other = (model(IN, H) if model is not nn.MultiheadAttention else model(E, 2) for _ in range(2))
    name = "in_proj_weight" if model is nn.MultiheadAttention else "weight_ih_l0"
    setattr(other, name, getattr(layer, name))
    return nn.ModuleList([layer, other])


class OwnForward(nn.GRU):
    def forward(self, input, hx=None):
        return super().forward(input.sin(), hx)


class OwnInit(nn.GRU):
    def __init__(self) -> None:
        super().__init__(IN, H, batch_first=True)


def _hooked() -> nn.Module:
    layer = nn.GRU(IN, H)
    layer.register_forward_hook(lambda *_: None)
    return layer


def _tied_elsewhere() -> nn.Module:
    layer, other = nn.GRU(IN, H), nn.Linear(IN, 3 * H)
    other.weight = layer.weight_ih_l0
    return nn.ModuleList([layer, other])


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (_lstm(weight_hh_l0=False), "'0.l0': input and hidden weights become one matrix; freeze both or neither"),
        (_lstm(bias_ih_l0=False), "freeze bias_hh instead"),
        (_lstm(weight_hh_l0="weight_ih_l0"), "'0.l0': its parameter 'weight_ih' is tied to another one; untie it"),
        (OwnForward(IN, H), r"'0' \(OwnForward\) is a GRU with a forward pass of its own; let it be"),
        (nn.utils.parametrizations.weight_norm(nn.GRU(IN, H), "weight_hh_l0"), "has parametrizations; remove them"),
        (_hooked(), r"'0' \(GRU\) has hooks"),
        (_half_tied(nn.RNN), "'0.1.l0': its parameter 'weight_ih' is tied to another one"),
        (_tied_elsewhere(), "'0.1.weight' is tied to 'weight_ih' of an opened module; untie it first"),
        (nn.LazyLinear(2), "'0.weight' is not initialized yet; run the model once first"),
        (nn.MultiheadAttention(E, 2, dropout=1.0), "'0' .MultiheadAttention.: dropout 1 drops everything"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_cannot_be_opened_is_refused_in_one_line(module: nn.Module, words: str) -> None:
    with pytest.raises(SiteError, match=words) as caught:
        opened(nn.Sequential(module))
    assert "\n" not in str(caught.value)


def test_tied_parts_that_stay_whole_stay_tied() -> None:
    first, second = opened(_half_tied(nn.MultiheadAttention))
    assert first.k_proj.weight is second.k_proj.weight
    assert first.out_proj.weight is not second.out_proj.weight
    first, second = opened(nn.ModuleList([nn.GRU(IN, H)] * 2))
    assert first is second


def test_a_frozen_second_bias_and_a_subclass_without_forward_are_opened() -> None:
    assert_equal(OwnInit().double(), torch.randn(N, T, IN, dtype=torch.float64))
    assert opened(_lstm(bias_hh_l0=False)).l0.gates.bias.requires_grad


# ---------------------------------------------------------------- estimates


class Attend(nn.Module):
    """Causal self-attention over a sequence [N, T, E], averaged over the steps, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(E, 2, batch_first=True, add_bias_kv=True)
        self.head = nn.Linear(E, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(T, T, dtype=torch.bool).triu(1)
        return self.head(self.attention(x, x, x, attn_mask=mask)[0].tanh().mean(1))


class Steps(nn.Module):
    """One step of each recurrent cell, from a state that is part of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.gru, self.lstm = nn.RNNCell(E, E), nn.GRUCell(E, E), nn.LSTMCell(E, E)
        self.head = nn.Linear(E, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rnn(x[:, 0], x[:, 1])
        h = self.gru(x[:, 2], h)
        return self.head(self.lstm(h, (x[:, 3], x[:, 0]))[0])


class Encode(nn.Module):
    """A transformer layer for sequences first, with keyed dropout in its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(E, 2, 6, dropout=0.0, activation="gelu")
        self.layer.self_attn.dropout = 0.2
        self.head = nn.Linear(E, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.transpose(0, 1)).mean(0))


@pytest.mark.long
@pytest.mark.montecarlo
@pytest.mark.parametrize("make", [Attend, pytest.param(Encode, marks=pytest.mark.long), Steps])
def test_estimates_of_an_opened_model_are_unbiased(make: type[nn.Module]) -> None:
    """The reference is autograd of the noisy objective with the same noise and masks in the shared pass."""
    model = opened(make())
    x, y = torch.randn(4, T, E), torch.tensor([0, 1, 1, 0])
    steps = 200
    estimates: dict[str, list[dict[str, Tensor]]] = {}
    for estimator, options in (("conditional", {"copies": 64}), ("pathwise", {})):
        net = GLR(model, 0.3, estimator, executor=Inline(1), **options)
        estimates[estimator] = []
        for net.step in range(steps):
            estimates[estimator].append(net.gradients(x, y).grads)
    for name, _ in model.named_parameters():
        found, expected = (torch.stack([grads[name] for grads in runs]).double() for runs in estimates.values())
        difference = found - expected
        z = difference.mean(0) / (difference.std(0) / steps**0.5).clamp(min=1e-9)
        assert z.abs().max() < 5, name  # of some 700 coordinates
        true = expected.mean(0)
        slopes = 1 + (difference * true).flatten(1).sum(1) / true.square().sum()
        if not name.endswith("k_proj.bias"):  # softmax ignores it: its gradient is 0
            assert slopes.std() / steps**0.5 < 0.15, f"{name}: too few steps to see a bias"
            assert abs(slopes.mean() - 1) < 4.5 * slopes.std() / steps**0.5, name


def test_the_sites_of_a_recurrent_layer_have_the_rule_of_a_linear_layer() -> None:
    net = GLR(opened(Steps()), executor=Inline(1))
    net.prepare(torch.randn(2, T, E))
    assert [site.name for site in net.network.sites] == [
        *("rnn.gates", "gru.gates", "gru.candidate_input", "gru.candidate_hidden", "lstm.gates", "head")
    ]
    assert all(direct_rule(net.network, site) for site in net.network.sites)
