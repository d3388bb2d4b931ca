"""Lanes, a clean environment, and the fixtures that all tests share.

The fixtures are real data, tiny configurations, and the command line as a separate process.
"""

from __future__ import annotations

import ast
import copy
import multiprocessing.process
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import pytest

# The environment of all tests and of the processes they start, changed before anything that reads it is imported.
# A user's own settings are removed: no test may reach a real cluster or server.
FOREIGN = ("RAY_ADDRESS", "MLFLOW_TRACKING_", "MLFLOW_EXPERIMENT_", "MLFLOW_RUN_ID", "MLFLOW_REGISTRY_URI")
for name in [name for name in os.environ if name.startswith(FOREIGN)]:
    del os.environ[name]
os.environ["MPLBACKEND"] = "agg"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  Ray's own 15 makes its workers wait for the tests beside them
if "PYTEST_XDIST_WORKER" in os.environ:  # workers run side by side, with one thread each
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PYTHONHASHSEED", None)  # processes that tests start hash by seeds of their own

from matplotlib.figure import Figure  # noqa: E402

from glr_dist import config  # noqa: E402
from glr_dist.config import Config  # noqa: E402

# ---------------------------------------------------------------- lanes

ROOT = Path(__file__).parents[1]
MAX_WORKERS = 4  # each holds torch, and one of them Ray
RAY_FIXTURES = {"local_ray"}
PROCESS_FIXTURES = {"start", "python", "compiler"}  # inductor starts Python to test what it has compiled
SLOW_FIXTURES = {"database"}  # MLflow creates its tables in seconds


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Number of workers for `-n auto`: the usable cores for the whole suite, none for tests that are named.

    One more where tests of Ray run, which spend much of their time waiting for processes.
    """
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return 0
    # Workers must collect the same tests in the same order, which may be that of a set.
    os.environ.setdefault("PYTHONHASHSEED", str(random.randrange(2**32)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting = "not ray" not in config.option.markexpr
    return min(cores + waiting, MAX_WORKERS) if cores > 1 else 0


@lru_cache
def _scope(nodeid: str) -> str:
    """Returns the tests that one worker must run: those of the same scope.

    Tests that share the session's Ray form one scope, so that one worker starts it. All other tests of a file share its
    fixtures. Only `montecarlo` files, which have no fixtures, are split into their tests.
    """
    name, _, test = nodeid.partition("::")
    if test.partition("[")[0] in _ray_tests(name):
        return "ray"
    return nodeid if "\npytestmark = pytest.mark.montecarlo\n" in (ROOT / name).read_text() else name


@lru_cache
def _ray_tests(name: str) -> set[str]:
    """Returns the functions of a file that use the session's Ray, also by the file's fixtures and `pytestmark`."""
    body = ast.parse((ROOT / name).read_text()).body
    marks = [node for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"]
    of_all = {word.value for mark in marks for word in ast.walk(mark) if isinstance(word, ast.Constant)}
    uses = {
        function.name: of_all | {argument.arg for argument in function.args.args}
        for function in body
        if isinstance(function, ast.FunctionDef)
    }
    found = set(RAY_FIXTURES)
    while more := {function for function, names in uses.items() if names & found} - found:
        found |= more
    return found


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distributes scopes over the workers. Marks are unknown to the process that distributes: it sees names alone."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    config.option.loadscopereorder = False  # else scopes of many tests come first, which are not the longest ones
    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their fixtures; workers of xdist begin with the longest scopes, so that all end together."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & RAY_FIXTURES:
            item.add_marker("ray")
        if fixtures & PROCESS_FIXTURES:
            item.add_marker("process")
        if fixtures & SLOW_FIXTURES:
            item.add_marker("slow")
        for mark, implied in (("product", "long"), ("long", "slow")):
            if item.get_closest_marker(mark):
                item.add_marker(implied)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    """Returns 0 for tests that share the session's Ray, 4 for those that run one by one; between them, by mark."""
    scope = _scope(item.nodeid)
    if scope in ("ray", item.nodeid):
        return 0 if scope == "ray" else 4
    return next((rank for rank, mark in enumerate(("ray", "process"), 1) if item.get_closest_marker(mark)), 3)


def _refuse_processes(patch: pytest.MonkeyPatch) -> None:
    """Makes it an error to start a Python process."""
    reason = "this test starts a process and lacks the mark `process` (or `ray`)"
    popen = subprocess.Popen.__init__

    def started(self: subprocess.Popen[Any], args: Any, *rest: Any, **options: Any) -> None:
        command = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
        if os.fspath(command[0]) == sys.executable:
            pytest.fail(reason)
        popen(self, args, *rest, **options)

    def refused(self: multiprocessing.process.BaseProcess) -> NoReturn:
        pytest.fail(reason)

    patch.setattr(subprocess.Popen, "__init__", started)
    patch.setattr(multiprocessing.process.BaseProcess, "start", refused)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Holds that tests outside the marks `process` and `ray` start no Python process, their fixtures included."""
    with pytest.MonkeyPatch.context() as patch:
        if not (item.get_closest_marker("process") or item.get_closest_marker("ray")):
            _refuse_processes(patch)
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of cached surrogates, in place of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLR_CACHE", str(folder))
        yield folder


_RENDER = Figure.savefig


def _save_blank(figure: Any, path: Path, **_: object) -> None:
    Path(path).write_bytes(b"blank")


@pytest.fixture(scope="session", autouse=True)
def _blank_pictures() -> Iterator[None]:
    """Pictures are composed and not rendered, which would take most of the time of many tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _save_blank)
        yield


@pytest.fixture(scope="session", autouse=True)
def _written_without_waiting() -> Iterator[None]:
    """Files are not flushed to the disk, for which some tests would wait most of their time: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def pictures(_blank_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at pictures: these are rendered."""
    monkeypatch.setattr(Figure, "savefig", _RENDER)


# ---------------------------------------------------------------- data and configurations

# Digits, three steps an epoch: a run takes a fraction of a second. On the CPU, so that it is the same on any machine.
TINY = """
model: {hidden: [8], activation: threshold}
noise: {scale: 0.5}
estimator: {copies: 8}
training: {epochs: 3, batch_size: 512, optimizer: {name: Adam, lr: 0.02}}
execution: {device: cpu}
"""

FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


@pytest.fixture(scope="session")
def glr_data() -> Path:
    """The folder of the real data sets, named by GLR_DATA."""
    if not (named := os.environ.get("GLR_DATA")):
        pytest.skip("needs MNIST and Fashion-MNIST: GLR_DATA is not set")
    root = Path(named)
    for folder in FOLDERS.values():
        if not (root / folder / "raw" / "train-images-idx3-ubyte").exists():
            pytest.skip(f"needs {folder}/raw/train-images-idx3-ubyte in GLR_DATA")
    return root


@pytest.fixture(scope="session", autouse=True)
def _digits_read_once() -> Iterator[None]:
    """The digits are read and parsed once per process, and copied for each data set."""
    from sklearn import datasets

    loaded = lru_cache(datasets.load_digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", lambda: copy.deepcopy(loaded()))
        yield


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database in a SQLite file, whose creation takes seconds."""
    from glr_dist import tracking

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    return tracking.resolved(config.build(config.Tracking, {"kind": "mlflow", "uri": f"sqlite:///{path}"})).uri or ""


@pytest.fixture
def tiny_yaml(tmp_path: Path) -> Path:
    """A configuration file of a tiny run."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """`tiny("noise.scale=2", …)`: the configuration of a tiny run with overrides."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return lambda *overrides: config.load_config(path, overrides)


# ---------------------------------------------------------------- compiled steps


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Lets the graphs of compiled steps run operator by operator, without the compiler, and collects them."""
    from glr_dist import inductor

    found = []

    def uncompiled(graph: Any, arguments: list[Any], used: tuple[int, ...]) -> inductor.Built:
        found.append(graph)
        return inductor.Built(graph, used, str(len(arguments)))

    monkeypatch.setattr(inductor, "_compiled", uncompiled)
    return found


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The compiler, with a cache of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLR_CACHE", str(tmp_path_factory.mktemp("compiled")))
        yield


# ---------------------------------------------------------------- processes

# What the installed script `glr-dist` does; `cli/test_start.py` holds that the two are the same.
COMMAND = (sys.executable, "-c", "import sys; from glr_dist.cli import main; sys.exit(main())")


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """`start("train", …, **options of Popen)`: the command line in another process, its output in pipes."""

    def popen(*arguments: object, **options: object) -> subprocess.Popen[str]:
        piped = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            # A shell starts background jobs with SIGINT ignored, which children inherit: a person's Ctrl-C is not.
            "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        }
        return subprocess.Popen([*COMMAND, *map(str, arguments)], **{**piped, **options})

    return popen


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python(code, *arguments, **environment)`: a fresh interpreter, run to its end."""

    def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)

    return run


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this process's own with four logical CPUs and two GPUs, whatever the machine has.

    Its workers find these tests.
    """
    import ray

    from glr_dist.execution.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "execution"), prepend=os.pathsep)
        # Not by `connect(4)`: only the process that starts such a Ray can use it, and other processes join this one.
        options = {"num_cpus": 4, "num_gpus": 2, "include_dashboard": False}
        ray.init("local", logging_level="ERROR", log_to_driver=False, **options)
    assert not connect(4)
    yield
    ray.shutdown()
