"""Completion for shells."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from cli.error_lines import error_line

from glr_dist import cli
from glr_dist.cli.parser import COMMANDS


def test_each_shell_completes_every_command_option_and_setting(capsys):
    for shell in ("bash", "zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        said = capsys.readouterr().out
        for name in (*COMMANDS, "resume", "suite", "noise.scale=", "training.optimizer.lr=", "bash"):
            assert re.search(rf"[\s'\-]{re.escape(name)}\b|{re.escape(name)}", said), (shell, name)
    assert "invalid choice: 'tcsh'" in error_line(capsys, "completion", "tcsh")


COMPLETED = [
    (["ev"], ["evaluate"]),
    (["train", "noise.s"], ["noise.scale=", "noise.schedule=", "noise.sites="]),
    (["train", "--re"], ["--resume"]),
    (["evaluate", "--su"], ["--suite"]),
    (["completion", "z"], ["zsh"]),
]


@pytest.mark.process
@pytest.mark.parametrize(("words", "expected"), COMPLETED, ids=str)
def test_bash_completes(tmp_path, words, expected, capsys):
    if (bash := shutil.which("bash")) is None:
        pytest.skip("needs bash")
    cli.main(["completion", "bash"])
    (tmp_path / "code").write_text(capsys.readouterr().out)
    script = f"source code; COMP_WORDS=(glr-dist {' '.join(words)}); COMP_CWORD={len(words)}; _glr_dist 2>/dev/null; "
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == expected


@pytest.mark.process
@pytest.mark.parametrize(("words", "expected"), COMPLETED, ids=str)
def test_fish_completes(tmp_path, words, expected, capsys):
    if (fish := shutil.which("fish")) is None:
        pytest.skip("needs fish")
    cli.main(["completion", "fish"])
    (tmp_path / "code").write_text(capsys.readouterr().out)
    script = f"source code; complete -C 'glr-dist {' '.join(words)}'"
    done = subprocess.run([fish, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == expected
