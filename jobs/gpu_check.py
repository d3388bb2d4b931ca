"""Checks the package on a machine with GPUs and prints a report in Markdown, to paste where it is asked for.

    python jobs/gpu_check.py [PART ...] [--gpus N] [--json FILE] [--timeout SECONDS]

Parts, by default all:
- tests: the tests that need CUDA pass.
- digest: a short run has one `params_sha256` inline, again inline, and on 1 to N actors with a GPU each.
- fractions: it has the same on actors that share GPUs.
- replicas: Ray Train workers agree with one process up to rounding, by NCCL and, sharing a GPU, by gloo.
- compiled: a compiled step has one `params_sha256` inline and on actors, and agrees with the eager step.
- memory: the memory of a step does not grow with the number of copies.
- rate: the share of the card's own matmul rate that a step reaches.

Each part runs in a process of its own, so that one that fails, crashes or hangs does not stop the others. The exit code
is 0 if all parts passed, 1 if one failed, and 2 for a user's error, such as a machine without a GPU. `--device cpu`
tries the script itself on such a machine, and leaves out what needs CUDA.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import glr_dist
from glr_dist import GLR, Gaussian, load_run
from glr_dist.config import Config, Execution, build
from glr_dist.errors import ConfigError, UserError
from glr_dist.execution.inline import Inline
from glr_dist.execution.software import software
from glr_dist.files import write_atomically
from glr_dist.nn import mlp
from glr_dist.text import hint, one_line
from glr_dist.training.train import train

TESTS = Path(__file__).resolve().parents[1] / "tests" / "test_cuda.py"

# Short runs whose work items are of different kinds; each step has several example blocks and several items of a site.
DIGITS: dict[str, Any] = {
    "data": {"name": "digits"},
    "noise": {"scale": 0.5},
    "training": {"epochs": 2, "batch_size": 512, "optimizer": {"name": "Adam", "lr": 0.01}},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "threshold MLP": {
        "model": {"hidden": [64, 32], "activation": "threshold"},
        "estimator": {"copies": 128},
        "training": {**DIGITS["training"], "loss": "zero_one"},
    },
    "flips, expected head": {
        "model": {"hidden": [64, 32], "activation": "threshold"},
        "estimator": {"copies": 64, "redraw": {"1": "copies", "3": "flips", "*": "copies"}, "head": "expected"},
        "training": {**DIGITS["training"], "loss": "zero_one"},
    },
    "convolutions": {
        "model": {"name": "vgg8", "width": 2},
        "estimator": {"copies": 8, "redraw": "auto", "feedback": "control_variate"},
    },
}
SMOOTH: dict[str, Any] = {
    "model": {"hidden": [64, 32], "activation": "sigmoid"},
    "estimator": {"copies": 64, "example_block": 32},
}
COMPILED: dict[str, dict[str, Any]] = {
    "copies": SMOOTH,
    "differences": {**SMOOTH, "estimator": {**SMOOTH["estimator"], "redraw": "auto", "head": "auto"}},
    "levels, flips": {
        "model": {"hidden": [64, 32], "activation": "threshold"},
        "estimator": {"copies": 64, "redraw": "auto", "head": "expected"},
        "training": {**DIGITS["training"], "loss": "zero_one"},
    },
}
AGREE = 1e-3  # greatest relative difference of parameters that differ by rounding alone

COPIES = (1024, 4096, 16384)  # all far beyond the block of copies that a work item computes at a time
FLAT = 1.5  # greatest ratio of the memory at the most copies to that at the fewest: orthogonal frames are kept
SIZES = (784, [512, 512], 10)
EXAMPLES = 1024
STEPS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "iid": {"sampler": "iid"},
    "blocks of 2^19": {"block_elements": 2**19},
    "blocks of 2^22": {"block_elements": 2**22},
    "blocks of 2^26": {"block_elements": 2**26},
    "blocks of 2^26, 1024 examples": {"block_elements": 2**26, "example_block": 1024},
}
ROUNDS = 5

Row = dict[str, Any]


class Found(NamedTuple):
    """Findings of a part: a table, and what is wrong; an empty text if nothing is."""

    rows: list[Row]
    wrong: str = ""


class LeftOutError(Exception):
    """Raised by a part that this machine, or this version, does not allow."""


@dataclass(frozen=True)
class Setting:
    """Device and number of GPUs for all parts.

    Attributes:
        device: "cuda" or "cpu".
        gpus: number of GPUs, or of actors on the CPU.
    """

    device: str
    gpus: int

    @property
    def on_gpu(self) -> bool:
        """True on a GPU."""
        return self.device == "cuda"

    def needs_gpu(self) -> None:
        """Leaves a part out on the CPU."""
        if not self.on_gpu:
            raise LeftOutError("it needs CUDA")

    def actors(self, number: int, share: float = 1.0, kind: str = "layers") -> dict[str, Any]:
        """Returns the section `execution` with actors that have a share of a GPU each."""
        return {"kind": kind, "actors": number, "gpus_per_actor": share if self.on_gpu else 0}

    def inline(self) -> dict[str, Any]:
        """Returns the section `execution` of this process."""
        return {"device": self.device}


@dataclass(frozen=True)
class Result:
    """Result of a part: "passed", "failed" or "left out", and its table."""

    part: str
    result: str
    reason: str
    seconds: float
    rows: list[Row]


# ---------------------------------------------------------------- parts


def tests(setting: Setting) -> Found:
    """The tests that need CUDA pass."""
    setting.needs_gpu()
    if not TESTS.exists() or find_spec("pytest") is None or find_spec("xdist") is None:
        raise LeftOutError("it needs a checkout of the repository, and pip install -e '.[dev]'")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-n", "0", "-p", "no:cacheprovider", str(TESTS)]
        ended = subprocess.run([*command, f"--junitxml={report}"], stdout=sys.stderr, cwd=TESTS.parents[1], check=False)
        if not report.exists():
            raise RuntimeError(f"pytest ended with exit code {ended.returncode} and wrote no report")
        return tested(xml.etree.ElementTree.parse(report).getroot())


def tested(report: xml.etree.ElementTree.Element) -> Found:
    """Returns the numbers of tests in a report of pytest (JUnit's format); those that did not pass are named."""
    rows: list[Row] = []
    outcomes = {"passed": 0, "failed": 0, "skipped": 0}
    for case in report.iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcomes[outcome] += 1
        if outcome != "passed":
            rows.append({"test": case.get("name"), "outcome": outcome})
    wrong = f"{outcomes['failed']} tests failed" if outcomes["failed"] else ""
    if not outcomes["passed"]:
        wrong = wrong or "no test ran"
    return Found([*rows, {"test": "all", "outcome": ", ".join(f"{n} {name}" for name, n in outcomes.items())}], wrong)


def digest(setting: Setting) -> Found:
    """A short run has one `params_sha256` inline, again inline, and on 1 to N actors."""
    return _digests(setting, [setting.actors(number) for number in range(1, setting.gpus + 1)])


def fractions(setting: Setting) -> Found:
    """A short run has one `params_sha256` inline and on actors that share GPUs."""
    setting.needs_gpu()
    numbers = sorted({2, 2 * setting.gpus})
    return _digests(setting, [setting.actors(number, 0.5) for number in numbers])


def _digests(setting: Setting, executions: Sequence[Mapping[str, Any]]) -> Found:
    rows: list[Row] = []
    with _ray(executions), tempfile.TemporaryDirectory() as folder:
        for network, sections in NETWORKS.items():
            for number, execution in enumerate([setting.inline(), setting.inline(), *executions]):
                out = Path(folder) / f"{len(rows)}"
                summary = _trained(network, sections, execution, out)
                rows.append({"network": network, **_who(execution, again=number == 1), **summary})
    return Found(rows, differing(rows))


def differing(rows: Sequence[Row]) -> str:
    """Names the networks whose rows have different digests; an empty text if there are none."""
    digests: dict[str, set[str]] = {}
    for row in rows:
        digests.setdefault(row["network"], set()).add(row["params_sha256"])
    wrong = [network for network, found in digests.items() if len(found) > 1]
    return f"params_sha256 differs: {', '.join(wrong)}" if wrong else ""


def replicas(setting: Setting) -> Found:
    """Ray Train workers agree with one process up to rounding."""
    groups = [(setting.actors(setting.gpus, kind="replicas"), "nccl" if setting.on_gpu else "gloo")]
    if setting.on_gpu:
        groups.append((setting.actors(2, 0.5, kind="replicas"), "gloo"))
    rows: list[Row] = []
    with _ray([execution for execution, _ in groups]), tempfile.TemporaryDirectory() as folder:
        inline = Path(folder) / "inline"
        rows.append({**_who(setting.inline()), **_trained("sigmoid MLP", SMOOTH, setting.inline(), inline)})
        for execution, backend in groups:
            out = Path(folder) / f"{len(rows)}"
            summary = _trained("sigmoid MLP", SMOOTH, execution, out)
            rows.append({**_who(execution), "backend": backend, **summary, "difference": _difference(inline, out)})
    far = [row["executor"] for row in rows[1:] if not row["difference"] <= AGREE]
    return Found(rows, f"parameters differ by more than {AGREE:g}: {', '.join(far)}" if far else "")


def compiled(setting: Setting) -> Found:
    """A compiled step has one `params_sha256` inline and on actors, and agrees with the eager step."""
    if "compile" not in Execution.model_fields:
        raise LeftOutError("this version does not compile steps")
    actors = [{**setting.actors(number), "compile": "step"} for number in sorted({1, setting.gpus})]
    rows: list[Row] = []
    wrong: list[str] = []
    with _ray(actors), tempfile.TemporaryDirectory() as folder:
        for network, sections in COMPILED.items():
            eager = Path(folder) / f"{network}-eager"
            found: list[Row] = []
            first = _trained(f"{network}, eager", sections, setting.inline(), eager)
            for execution in [{**setting.inline(), "compile": "step"}, *actors]:
                out = Path(folder) / f"{network}-{len(found)}"
                summary = _trained(f"{network}, compiled", sections, execution, out)
                found.append({"network": f"{network}, compiled", **_who(execution), **summary})
            difference = _difference(eager, Path(folder) / f"{network}-0")
            found[0]["difference"] = difference
            # A threshold unit that rounding flips moves the parameters of all later steps.
            if sections["model"]["activation"] == "sigmoid" and not difference <= AGREE:
                wrong.append(f"{network}: compiled and eager parameters differ by {difference:.2g}")
            rows += [{"network": f"{network}, eager", **_who(setting.inline()), **first}, *found]
    return Found(rows, "; ".join([*([apart] if (apart := differing(rows)) else []), *wrong]))


def memory(setting: Setting) -> Found:
    """The memory of a step does not grow with the number of copies."""
    setting.needs_gpu()
    x, y = _batch(setting, EXAMPLES)
    rows = []
    for copies in COPIES:
        net = _net(setting, copies=copies)
        net.gradients(x, y)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        net.gradients(x, y)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        rows.append({"K": copies, "MiB before": before / 2**20, "peak MiB": peak / 2**20})
        del net
    return Found(rows, grown(rows))


def grown(rows: Sequence[Row]) -> str:
    """Says that the peak of memory grows with K; an empty text if it does not."""
    ratio = rows[-1]["peak MiB"] / rows[0]["peak MiB"]
    return f"the peak grows {ratio:.2f} times from K = {rows[0]['K']} to {rows[-1]['K']}" if ratio > FLAT else ""


def rate(setting: Setting) -> Found:
    """The share of the card's own matmul rate that a step reaches."""
    size, copies, examples = (8192, 1000, EXAMPLES) if setting.on_gpu else (512, 8, 32)
    x, y = _batch(setting, examples)
    matrix = torch.rand(size, size, device=setting.device)
    runs: dict[str, Callable[[], object]] = {"matmul": lambda: matrix @ matrix}
    flops, passes = {"matmul": 2.0 * size**3}, {}
    for name, options in STEPS.items():
        net = _net(setting, copies=copies, **options)
        step = net.bind(x, y)
        passes[name] = net.estimator.forward_passes(step)
        flops[name] = passes[name] * examples * net.network.flops + net.estimator.driver_work(step).flops
        runs[name] = partial(net.gradients, x, y)
    seconds = interleaved(runs, ROUNDS, torch.cuda.synchronize if setting.on_gpu else lambda: None)
    best = flops["matmul"] / statistics.median(seconds["matmul"])
    rows: list[Row] = []
    for name, times in seconds.items():
        reached = flops[name] / statistics.median(times)
        row = {"step": name, "K": copies, "N": examples, "forward passes": passes.get(name)}
        if name == "matmul":
            row = {"step": f"matmul of {size} x {size}, precision {torch.get_float32_matmul_precision()}"}
        spread = f"{1000 * min(times):.3g} to {1000 * max(times):.3g}"
        measured = {"ms": 1000 * statistics.median(times), "range": spread, "GFLOP/s": reached / 1e9}
        rows.append({**row, **measured, "share": reached / best})
    return Found(rows)


def interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int, wait: Callable[[], object]
) -> dict[str, list[float]]:
    """Returns the seconds of each run in each round, all runs in turn, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            _say(f"round {number} of {rounds}: {name}")
            wait()
            started = time.perf_counter()
            run()
            wait()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


PARTS: dict[str, Callable[[Setting], Found]] = {
    part.__name__: part for part in (tests, digest, fractions, replicas, compiled, memory, rate)
}


# ---------------------------------------------------------------- runs


@contextmanager
def _ray(executions: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Connects to Ray once for several runs."""
    from glr_dist.execution.cluster import connected

    with connected(max(execution["actors"] for execution in executions)):
        yield


def _trained(name: str, sections: Mapping[str, Any], execution: Mapping[str, Any], out: Path) -> Row:
    """Trains a network on the digits; returns the columns of its row."""
    _say(f"{name}: {_who(execution)['executor']}")
    config = build(Config, {**DIGITS, **sections, "execution": dict(execution)})
    with redirect_stdout(io.StringIO()):  # the lines of the epochs
        summary = train(config, out)
    return {
        "params_sha256": summary["params_sha256"][:16],
        "test accuracy": summary["test_accuracy"],
        "seconds": summary["seconds"],
    }


def _who(execution: Mapping[str, Any], *, again: bool = False) -> Row:
    """Describes a section `execution` in columns."""
    if "actors" not in execution:
        return {"executor": f"inline, {execution['device']}{', again' if again else ''}"}
    share = execution["gpus_per_actor"]
    return {"executor": f"{execution['kind']}, {execution['actors']} x {f'{share:g} GPU' if share else '1 CPU'}"}


def _difference(first: Path, second: Path) -> float:
    """Returns |a - b| / |a| of the parameters a, b of two runs."""
    a, b = (torch.cat([p.detach().flatten() for p in load_run(out, "cpu").net.parameters()]) for out in (first, second))
    return float((a - b).norm() / a.norm())


def _net(setting: Setting, **options: Any) -> GLR:
    inputs, hidden, outputs = SIZES
    model = mlp(inputs, hidden, outputs, "threshold", init="torch", generator=torch.Generator().manual_seed(0))
    return GLR(model.to(setting.device), Gaussian(0.5), executor=Inline(1), **options)


def _batch(setting: Setting, examples: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    x, y = torch.rand(examples, SIZES[0], generator=stream), torch.randint(SIZES[2], (examples,), generator=stream)
    return x.to(setting.device), y.to(setting.device)


def _say(text: str) -> None:
    """Shows progress."""
    print(f"  {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- report


def machine(setting: Setting) -> Row:
    """Describes this machine and its software."""
    driver = Path("/sys/module/nvidia/version")
    found: Row = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "GPUs": [],
        "glr_dist": glr_dist.__version__,
        **software(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
    }
    if setting.on_gpu:
        each = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found["GPUs"] = [f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute {p.major}.{p.minor}" for p in each]
        found["driver"] = driver.read_text().strip() if driver.exists() else None
        found["cuDNN"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        if torch.distributed.is_nccl_available():
            found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return found


def head(about: Row) -> str:
    """Returns the beginning of the report in Markdown: the machine and its software."""
    gpus: dict[str, int] = {}
    for name in about["GPUs"]:
        gpus[name] = gpus.get(name, 0) + 1
    told = {**about, "GPUs": "; ".join(f"{number} x {name}" for name, number in gpus.items()) or "none"}
    return "\n".join(["# GPU check", "", *(f"- {name}: {value}" for name, value in told.items() if value)])


def section(found: Result) -> str:
    """Returns the section of a part in Markdown."""
    outcome = f"{found.result} after {found.seconds:.0f} s{f': {found.reason}' if found.reason else ''}"
    lines = ["", f"## {found.part}: {(PARTS[found.part].__doc__ or '').rstrip('.')}", "", outcome]
    return "\n".join([*lines, *(["", *table(found.rows)] if found.rows else [])])


def table(rows: Sequence[Row]) -> list[str]:
    """Returns the lines of a table in Markdown; a row may lack columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(' --- ' for _ in columns)}|"]
    return lines + [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


# ---------------------------------------------------------------- processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the machine; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--gpus", type=int, metavar="N", help="number of GPUs to use (all)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: try the script without a GPU")
    parser.add_argument("--timeout", type=float, default=1200, metavar="SECONDS", help="limit of a part (1200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file that receives the report as JSON")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # run one part here, and write its result there
    options = parser.parse_args(arguments)
    try:
        setting = _setting(options)
        parts = list(dict.fromkeys(options.parts)) or list(PARTS)
        for part in parts:
            if part not in PARTS:
                raise ConfigError(f"PART: {part!r} is not allowed; {hint(part, PARTS)}")
        if options.json is not None and not options.json.absolute().parent.is_dir():
            raise ConfigError(f"--json: the folder of {options.json} does not exist")
    except UserError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    if options.result is not None:
        write_atomically(options.result, json.dumps(asdict(_run(parts[0], setting))).encode())
        return 0
    about = machine(setting)
    print(head(about), flush=True)
    results = []
    for number, part in enumerate(parts, 1):
        print(f"[{number}/{len(parts)}] {part}: {PARTS[part].__doc__}", file=sys.stderr, flush=True)
        results.append(in_process(part, setting, options.timeout))
        print(section(results[-1]), flush=True)  # at once: what comes next may crash the machine
        if options.json is not None:
            content = {**about, "parts": [asdict(each) for each in results]}
            write_atomically(options.json.absolute(), (json.dumps(content, indent=2) + "\n").encode())
    return 1 if any(each.result == "failed" for each in results) else 0


def _setting(options: argparse.Namespace) -> Setting:
    """Returns what the parts run with.

    Raises:
        ConfigError: the machine has no GPU, or fewer than asked for.
    """
    there = torch.cuda.device_count() if options.device == "cuda" else 2
    if not there:
        raise ConfigError("this machine has no CUDA device; --device cpu tries the script itself without one")
    number = there if options.gpus is None else options.gpus
    if number < 1 or (options.device == "cuda" and number > there):
        raise ConfigError(f"--gpus: {number} is not allowed: a number from 1 on, and this machine has {there}")
    return Setting(options.device, number)


def in_process(part: str, setting: Setting, timeout: float) -> Result:
    """Runs a part in a process of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "result.json"
        options = ["--result", str(written), "--device", setting.device, "--gpus", str(setting.gpus)]
        try:
            ended = subprocess.run([sys.executable, str(Path(__file__).resolve()), part, *options], timeout=timeout)
            reason = f"its process ended with exit code {ended.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"no result within {timeout:g} s"
        if written.exists():
            return Result(**json.loads(written.read_text()))
    return Result(part, "failed", reason, time.monotonic() - started, [])


def _run(part: str, setting: Setting) -> Result:
    """Runs a part in this process; an error is its result."""
    started, rows = time.monotonic(), list[Row]()
    try:
        rows, reason = PARTS[part](setting)
        result = "failed" if reason else "passed"
    except LeftOutError as why:
        result, reason = "left out", str(why)
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        result, reason = "failed", f"{type(error).__name__}: {one_line(error)}"
    return Result(part, result, reason, time.monotonic() - started, rows)


if __name__ == "__main__":
    sys.exit(main())
