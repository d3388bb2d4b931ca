"""`glr-dist completion`: shell code, made from the parser, that completes commands, options and settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

HELP = "print the code that completes glr-dist in bash, zsh or fish"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    command.add_argument(
        "shell",
        choices=sorted(_SHELLS),
        help='to use it at once: eval "$(glr-dist completion bash)", also for zsh; glr-dist completion fish | source',
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.cli.parser import parser

    print(_SHELLS[options.shell](list(_commands(parser()))), end="")
    return 0


class _Command(NamedTuple):
    name: str
    help: str
    options: tuple[tuple[str, str], ...]  # with their help
    words: tuple[str, ...]  # what its positional arguments can be, besides files


def _commands(root: argparse.ArgumentParser) -> Iterator[_Command]:
    (commands,) = (action for action in root._actions if isinstance(action, argparse._SubParsersAction))
    texts = {action.dest: action.help or "" for action in commands._choices_actions}
    for name, command in commands.choices.items():
        options = [(option, action.help or "") for action in command._actions for option in action.option_strings]
        words = [
            str(choice) for action in command._actions if not action.option_strings for choice in action.choices or ()
        ]
        if any(action.dest == "config" for action in command._actions):
            words += [f"{field}=" for field in _settings()]
        yield _Command(name, texts[name], tuple(options), tuple(words))


def _settings() -> list[str]:
    from glr_dist.config import Config, flat

    return list(flat(Config().model_dump(mode="json")))


def _bash(commands: list[_Command]) -> str:
    cases = "".join(
        f"    {c.name}) words='{' '.join([*(option for option, _ in c.options), *c.words])}' ;;\n" for c in commands
    )
    return f"""\
_glr_dist() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W '{" ".join(c.name for c in commands)} --help --version' -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}  esac
  COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
  [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
  return 0
}}
complete -o filenames -F _glr_dist glr-dist
"""


def _zsh(commands: list[_Command]) -> str:
    names = "\n".join(f"    {_quoted(f'{c.name}:{c.help}')}" for c in commands)
    cases = "".join(
        f"    {c.name}) compadd -- {' '.join(option for option, _ in c.options)}; "
        + (f"compadd -S '' -- {' '.join(c.words)}; " if c.words else "")
        + "_files ;;\n"
        for c in commands
    )
    return f"""\
#compdef glr-dist
_glr_dist() {{
  local -a commands
  commands=(
{names}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case $words[2] in
{cases}  esac
}}
compdef _glr_dist glr-dist
"""


def _fish(commands: list[_Command]) -> str:
    lines = ["complete -c glr-dist -n __fish_use_subcommand -f"]
    lines += [f"complete -c glr-dist -n __fish_use_subcommand -a {c.name} -d {_quoted(c.help)}" for c in commands]
    for c in commands:
        here = f"complete -c glr-dist -n '__fish_seen_subcommand_from {c.name}'"
        lines += [f"{here} -l {option[2:]} -d {_quoted(text)}" for option, text in c.options if option.startswith("--")]
        lines += [f"{here} -a {_quoted(' '.join(c.words))}"] if c.words else []
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Returns the text in single quotes; its own become ’, since the shells escape them differently."""
    return "'" + text.replace("'", "’") + "'"


_SHELLS: dict[str, Callable[[list[_Command]], str]] = {"bash": _bash, "fish": _fish, "zsh": _zsh}
