"""The import rules of the package, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "glr_dist"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "starter"]  # copied, not imported

# A module imports from its own layer and earlier ones only.
LAYERS = (
    {"errors", "imported", "misclassification", "redaction", "registry", "text", "trees", "uris"},
    {"config", "sizes", "streams", "losses", "nn"},
    {"noise"},
    {"files", "figures", "checks", "claims", "outputs"},
    {"data"},
    {"chain", "compiled", "inductor", "sites"},
    {"survey"},
    {"network"},
    {"rules", "estimators"},
    {"summary", "verification"},
    {"execution"},
    {"options"},
    {"glr"},
    {"build", "input_gradient"},
    {"runs"},
    {"training"},
    {"diagnostics", "planning", "robustness"},
    {"run_table", "tracking"},
    {"tuning"},
    {"reproduction"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Who may import a heavy or optional library at all.
ONLY_IN = {
    "ray": {
        "execution/cluster.py",
        "execution/layers.py",
        "execution/local_ray.py",
        "execution/replicas.py",
        "execution/pool.py",
        "execution/shell.py",
        "tuning/asha.py",
        "tuning/ray_tune.py",
        "tuning/searcher.py",
    },
    "optuna": {"tuning/study.py"},
    "mlflow": {f"tracking/{name}.py" for name in ("server", "uploader", "audit", "model", "parent")},
}

# What may not be imported when the module itself is (inside a function it may).
NOT_AT_TOP = {
    "__init__.py": {"torch", "numpy", "pydantic", "yaml", "ray", "mlflow", "sklearn", "scipy"},
    **{
        f"config/{name}.py": {"torch", "numpy", "ray", "mlflow", "sklearn", "scipy"}
        for name in (path.stem for path in (PACKAGE / "config").glob("*.py"))
    },
    "robustness/__init__.py": {"torch", "numpy", "ray", "mlflow", "sklearn", "scipy"},
    "robustness/suite.py": {"torch", "numpy", "ray", "mlflow", "sklearn", "scipy"},
    "robustness/report.py": {"torch", "numpy", "ray", "mlflow", "sklearn", "scipy"},
    **{
        f"tuning/{name}.py": {"torch", "numpy", "ray", "optuna", "mlflow"}
        for name in ("search_config", "algorithms", "objectives", "ranges", "points", "ranking", "trial_record")
    },
    **{f"execution/{name}.py": {"torch"} for name in ("cluster", "joined", "pool", "shell")},  # actors start without it
    **{name: {"torch", "numpy", "ray", "mlflow", "sklearn", "scipy"} for name in ("sizes.py", "execution/device.py")},
    "tuning/study.py": {"ray", "optuna", "mlflow"},
    "tuning/search.py": {"ray", "optuna", "mlflow"},
    **{
        path.relative_to(PACKAGE).as_posix(): {
            "torch",
            "numpy",
            "pydantic",
            "yaml",
            "ray",
            "mlflow",
            "sklearn",
            "scipy",
            "tqdm",
        }
        for path in (PACKAGE / "cli").glob("*.py")
    },
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def layer_of(path: Path) -> str:
    """`nn` for nn/dropout.py, `noise` for noise.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(node: ast.AST, *, top: bool = False) -> Iterator[str]:
    """The dotted names that a module imports; `top` leaves out the imports inside functions."""
    for child in ast.iter_child_nodes(node):
        if for_type_checkers(child) or (top and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imported(child, top=top)


def imports(path: Path, *, top: bool = False) -> list[str]:
    return list(imported(ast.parse(path.read_text(encoding="utf-8")), top=top))


def test_the_rules_see_the_package():
    assert {name_of(path) for path in MODULES} >= {"__init__.py", "cli/train.py", "training/trainer.py"}
    assert "glr_dist.config.Config" in imports(PACKAGE / "training" / "trainer.py")
    assert "torch.Tensor" in imports(PACKAGE / "noise.py", top=True)
    # Found inside a function, and left out where only the module's own imports count.
    assert "glr_dist.training.train.trainer_of" in imports(PACKAGE / "cli" / "train.py")
    assert "glr_dist.training.train.trainer_of" not in imports(PACKAGE / "cli" / "train.py", top=True)


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) != "__init__.py"], ids=name_of)
def test_imports_run_one_way(path):
    assert layer_of(path) in RANK, f"{layer_of(path)} has no place in the order of layers"
    for name in imports(path):
        package, _, rest = name.partition(".")
        inner = rest.split(".")[0]
        if package != "glr_dist" or inner == "__version__":
            continue
        assert inner in RANK, f"{name_of(path)} imports {name}, which has no place in the order of layers"
        assert RANK[inner] <= RANK[layer_of(path)], f"{name_of(path)} imports {name} of a later layer"


@pytest.mark.slow
@pytest.mark.parametrize("library", ONLY_IN)
def test_an_optional_library_is_imported_only_where_it_belongs(library):
    users = {name_of(path) for path in MODULES if any(name.split(".")[0] == library for name in imports(path))}
    assert users <= ONLY_IN[library]


@pytest.mark.parametrize("name", NOT_AT_TOP)
def test_what_starts_fast_imports_nothing_slow(name):
    found = {imported.split(".")[0] for imported in imports(PACKAGE / name, top=True)}
    assert not found & NOT_AT_TOP[name]


@pytest.mark.parametrize(
    "name",
    [
        "config/__init__.py",
        "config/section.py",
        "config/training.py",
        "cli/__init__.py",
        "cli/parser.py",
        "cli/train.py",
        "robustness/suite.py",
    ],
)
def test_what_starts_fast_imports_no_module_of_the_package_that_needs_torch(name):
    light = (
        "glr_dist.__version__",
        "glr_dist.errors.",
        "glr_dist.text.",
        "glr_dist.registry.",
        "glr_dist.imported.",
        "glr_dist.config.",
        "glr_dist.cli.",
        "glr_dist.uris.",
        "glr_dist.redaction.",
    )
    for imported in imports(PACKAGE / name, top=True):
        assert not imported.startswith("glr_dist") or imported.startswith(light)
