"""What the README shows is what happens."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_learns_exclusive_or(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"__name__": "readme"}
    exec(compile(example, "README.md", "exec"), names)
    assert names["accuracy"] > 0.9  # guessing gives 0.5
    assert f"{names['accuracy']:.3f}" in capsys.readouterr().out


def test_every_file_it_names_exists():
    named = re.findall(r"\b(?:configs|jobs)/[\w/]+\.(?:yaml|py)\b", README)
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).exists()] == []
