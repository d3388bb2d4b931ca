"""Builds one function of tensors with torch's compiler: the same code in every process, for one intra-op thread.

A function is traced once, with the shapes of its arguments, into a graph of operators; inductor turns the graph into
C++ (on CUDA into Triton). No choice is made by timing. The results on the disk are shared by all processes of a
machine, so that each function is compiled once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from glr_dist.errors import UserError
from glr_dist.files import cache_folder
from glr_dist.text import shortened

Results = tuple[Tensor, ...]

_SETTINGS: dict[str, Any] = {  # of inductor, whatever the environment says; those that a version lacks are left out
    "cpp.threads": 1,
    "cpp.dynamic_threads": False,
    "cpp.enable_unsafe_math_opt_flag": False,
    "cpp.enable_floating_point_contract_flag": "off",
    "compile_threads": 1,  # no pool of processes
    "benchmark_harness": False,  # it shows which arguments share memory, as those that an actor receives do
    "freezing": False,  # parameters change
    "max_autotune": False,
    "max_autotune_gemm": False,
    "max_autotune_pointwise": False,
    "coordinate_descent_tuning": False,
    "deterministic": True,
}
_NARROW = 32  # products with at most this many outputs are laid out with the outputs first
_BUILDING = threading.Lock()
_COLUMNS_FIRST = {torch.ops.aten.addmm.default: 1, torch.ops.aten.mm.default: 0}  # position of x in x wᵀ


class CompileError(UserError):
    """A function cannot be compiled: it has no graph, or the compiler is missing or fails."""


class Built(NamedTuple):
    """A compiled function.

    Attributes:
        run: the function of the used arguments.
        used: positions of the arguments that it uses.
        digest: identifies the generated code.
    """

    run: Callable[..., Results]
    used: tuple[int, ...]
    digest: str


def built(function: Callable[..., Results], arguments: Sequence[Tensor]) -> Built:
    """Compiles a function for contiguous arguments of the given shapes; call it in one thread, without autograd.

    Args:
        function: a function of tensors alone. Every tensor that its result depends on is an argument.
        arguments: example arguments.

    Raises:
        CompileError: the function cannot be compiled; the message gives the reason.
    """
    try:
        with _BUILDING, _environment(arguments[0].device):
            graph = _graph(function, arguments)
            used = _without_unused(graph)
            _outputs_first(graph)
            if arguments[0].device.type == "cpu":
                _contiguous(graph)
            return _compiled(graph, [arguments[i] for i in used], used)
    except Exception as error:  # the compiler has no common class of errors
        said = str(error).strip().partition("\n")[0]
        raise CompileError(shortened(said or type(error).__name__, 160)) from error


def _graph(function: Callable[..., Results], arguments: Sequence[Tensor]) -> GraphModule:
    """Traces a function; an operator on a tensor that is not an argument, or a choice by a value, is an error."""
    from torch.fx.experimental.proxy_tensor import make_fx

    graph: GraphModule = make_fx(function, tracing_mode="fake")(*arguments)
    graph.graph.eliminate_dead_code()
    return graph


def _without_unused(graph: GraphModule) -> tuple[int, ...]:
    """Removes the arguments that a graph does not use; returns the positions of the others."""
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node in places:
        if not node.users:
            graph.graph.erase_node(node)
    return tuple(i for i, node in enumerate(places) if node.users)


def _outputs_first(graph: GraphModule) -> None:
    """Lays narrow products x wᵀ [B, C] out as [C, B]: sums over C then run along B, several rows at a time."""
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # which takes any layout
        elif node.target in _COLUMNS_FIRST and not node.kwargs and node.meta["val"].shape[1] <= _NARROW:
            _transposed(graph, node)
    graph.recompile()


def _contiguous(graph: GraphModule) -> None:
    """Has contiguous copies computed once, and laid out so; the compiler might choose otherwise, or repeat them.

    The expected 0-1 loss is a product over the classes, for which C++ needs twice the time with the classes last.
    """
    from torch._inductor import inductor_prims

    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not aten.clone.default:
            continue
        if node.kwargs.get("memory_format") is torch.contiguous_format:
            strides = list(node.meta["val"].stride())
            with graph.graph.inserting_after(node):
                kept = graph.graph.call_function(inductor_prims.force_stride_order, (node, strides))
            node.replace_all_uses_with(kept, delete_user_cb=lambda user, kept=kept: user is not kept)
    graph.recompile()


def _transposed(graph: GraphModule, node: Node) -> None:
    """Replaces b + x y by (bᵀ + yᵀ xᵀ)ᵀ."""
    aten = torch.ops.aten
    first: Any = _COLUMNS_FIRST[node.target]  # type: ignore[index]
    x, y = node.args[first : first + 2]
    with graph.graph.inserting_before(node):
        factors = tuple(graph.graph.call_function(aten.t.default, (factor,)) for factor in (y, x))
        added: tuple[Node, ...] = ()
        if first:
            bias: Any = node.args[0]
            column = aten.unsqueeze.default if bias.meta["val"].dim() == 1 else aten.t.default
            added = (graph.graph.call_function(column, (bias, 1) if column is aten.unsqueeze.default else (bias,)),)
        product = graph.graph.call_function(node.target, (*added, *factors))  # type: ignore[arg-type]
        back = graph.graph.call_function(aten.t.default, (product,))
    node.replace_all_uses_with(back)
    graph.graph.erase_node(node)


def _compiled(graph: GraphModule, arguments: list[Tensor], used: tuple[int, ...]) -> Built:
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    codes: list[Any] = []
    expected: list[int] = []  # numbers of arguments

    def inner(inside: GraphModule, given: Sequence[Any], **options: Any) -> Any:
        code: Any = compile_fx_inner(inside, given, **options)
        codes.append(code)
        expected.append(len(given))
        return code

    run: Any = compile_fx(graph, arguments, inner_compile=inner, config_patches=_settings(arguments[0].device))
    (code,) = codes
    lines = [line for line in code.source_code.splitlines() if not line.startswith("#")]  # these number compilations
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    inside, constants = getattr(code, "current_callable", None), list(graph.buffers())
    if inside is not None and arguments[0].device.type == "cpu" and expected == [len(constants) + len(arguments)]:
        run = _direct(inside, run, constants, arguments)
    return Built(run, used, digest)


def _direct(
    code: Callable[[list[Tensor]], Sequence[Tensor]], run: Any, constants: list[Tensor], arguments: list[Tensor]
) -> Any:
    """Returns the generated code without the calls around it, if it gives the same results alone.

    These calls, which serve autograd, take about a fifth of the time of a small network's functions.
    """

    def direct(*given: Tensor) -> Results:
        return tuple(code([*constants, *given]))

    wanted, found = run(*arguments), direct(*arguments)
    same = len(wanted) == len(found) and all(map(_same_bits, wanted, found))
    return direct if same else run


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """True if two tensors have one shape, one layout and the same bits."""
    alike = a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
    return alike and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b)))


# ---------------------------------------------------------------- the compiler and its files


def _settings(device: torch.device) -> dict[str, Any]:
    """Returns the settings of inductor that this version of torch has."""
    from torch._inductor import config

    # The C++ wrapper releases Python's lock, so that several threads compute items at a time.
    known = config.get_config_copy() if hasattr(config, "get_config_copy") else config.shallow_copy_dict()
    return {name: value for name, value in _SETTINGS.items() if name in known} | {"cpp_wrapper": device.type == "cpu"}


def compiler_folder() -> Path:
    """Returns the absolute folder of compiled functions, one for each kind of processor and version of torch."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        processor = platform.processor()
    kind = f"{platform.machine()} {processor} {torch.__version__} {platform.python_version()}"
    return (cache_folder() / "compiled" / hashlib.sha256(kind.encode()).hexdigest()[:12]).absolute()


def _check_compiler(named: str | Sequence[str | None]) -> None:
    """Refuses a machine without a C++ compiler, also if the cache holds what it would compile.

    Raises:
        CompileError: none is installed.
    """
    names = [name for name in ((named,) if isinstance(named, str) else named) if name]
    if not any(map(shutil.which, names)):
        raise CompileError(f"the C++ compiler {' or '.join(names)} is not installed")


@contextmanager
def _environment(device: torch.device) -> Iterator[None]:
    """Sets where inductor keeps its files, and silences what it says about the machine."""
    name, logger = "TORCHINDUCTOR_CACHE_DIR", logging.getLogger("torch.utils.cpp_extension")
    before, level = os.environ.get(name), logger.level
    os.environ[name] = str(compiler_folder())
    logger.setLevel(logging.ERROR)
    try:
        from torch._inductor import config

        with config.patch(_settings(device)):  # before inductor is imported, which would start processes
            import torch._functorch.config as functorch_config
            import torch._inductor.compile_fx  # noqa: F401

            if device.type == "cpu":
                _check_compiler(config.cpp.cxx)
            with functorch_config.patch(enable_autograd_cache=False):  # its hits do not show the code
                yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
