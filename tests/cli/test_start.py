"""The start of the command line: its time and its imports."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from glr_dist import cli

TIMEOUT = 300  # seconds after which a process is taken to hang
HEAVY = ("torch", "ray", "mlflow", "pydantic", "yaml", "numpy", "sklearn", "scipy", "matplotlib")


HELP = """
import sys
from glr_dist.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0
print("IMPORTED", *sorted(name for name in sys.modules if "." not in name))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["tune", "--help"], ["--version"]], ids=" ".join
)
def test_help_and_version_import_nothing_heavy(python, arguments):
    done = python(HELP, *arguments)
    assert done.returncode == 0, done.stderr
    *said, imported = done.stdout.splitlines()
    assert "glr-dist" in said[0]
    assert not set(HEAVY) & set(imported.split())


def test_the_installed_command_is_the_function_that_is_tested_here(start):
    (script,) = entry_points(group="console_scripts", name="glr-dist")
    assert script.load() is cli.main
    process = start("--help")
    said, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    assert all(command in said for command in ("train", "diagnose", "config"))


def test_importing_the_package_imports_nothing_heavy(python):
    done = python("import glr_dist, sys; print(*sys.modules)")
    assert not set(HEAVY) & set(done.stdout.split())


def test_the_configuration_is_printed_without_torch(python, tiny_yaml):
    code = "import sys; from glr_dist.cli import main; main(sys.argv[1:]); print('#', *sys.modules)"
    imported = python(code, "config", tiny_yaml).stdout.splitlines()[-1].split()
    assert "pydantic" in imported
    assert not {"torch", "ray", "mlflow"} & set(imported)
