"""Code of the user's own, named as `package.module:attribute` in a configuration.

It is looked for among the installed packages, then in the working directory, then in the folder of the configuration.
"""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

from glr_dist.errors import ConfigError, UserError
from glr_dist.text import hint, one_line, shown

searched: list[str] = []  # folders with code of the user's own, which an actor needs too

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def is_import_path(name: object) -> bool:
    """True if a name has the form `package.module:attribute`."""
    return isinstance(name, str) and _PATH.fullmatch(name) is not None


def imported(path: str, where: str, code: str | None = None) -> Any:
    """Imports what an import path names.

    Args:
        path: "package.module:attribute".
        where: the field that names it, for error messages.
        code: the folder of the configuration.

    Raises:
        ConfigError: the module or the attribute does not exist, or the module raises an error; the message shows the
            line of the user's file.
    """
    name, _, attribute = path.partition(":")
    search([str(Path.cwd()), *([code] if code else [])])
    try:
        found: Any = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"{where}: importing {name!r} failed {place_of(error)}") from None
        folders = ", ".join(dict.fromkeys(str(folder) for folder in (Path.cwd(), code) if folder))
        raise ConfigError(f"{where}: module {error.name!r} was not found in {folders} or among the packages") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: importing {name!r} failed {place_of(error)}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            origin = getattr(found, "__file__", None) or name
            known = [each for each in vars(found) if not each.startswith("_")] if hasattr(found, "__dict__") else []
            raise ConfigError(f"{where}: {origin} does not define {part!r}; {hint(part, known, listed='it defines')}")
        found = getattr(found, part)
    return found


def called(function: Any, name: str, arguments: Mapping[str, Any], where: str, **offered: Any) -> Any:
    """Calls a class or function of the user's with the keys of a section as arguments.

    Args:
        function: the class or function.
        name: its name in the configuration.
        arguments: the keys of the section.
        where: the section, for error messages.
        **offered: values for parameters that the section does not give; those that the function does not name are
            left out.

    Raises:
        ConfigError: an argument is unknown or missing, or the function raises an error; the message shows the line of
            the user's file.
    """
    if not callable(function):
        raise ConfigError(f"{where}.name: {name} is a {type(function).__name__}, not a class or a function")
    given = dict(arguments)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a builtin
        parameters = None
    if parameters is not None:
        by_name = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key in given:
            if key not in by_name and not takes_any:
                nearest = hint(key, by_name, listed="it takes") if by_name else "it takes no arguments"
                raise ConfigError(f"{where}.{shown(key)[1:-1]}: is not an argument of {name}; {nearest}")
        given |= {key: value for key, value in offered.items() if key in by_name and key not in given}
        for parameter in by_name:
            if parameter not in given and parameters[parameter].default is inspect.Parameter.empty:
                raise ConfigError(f"{where}.{parameter}: is missing; {name} needs it")
    try:
        return function(**given)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: {name} failed {place_of(error)}") from None


def parameters_of(function: Any) -> list[str]:
    """Returns the names of the parameters of a class or function that can be given by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a builtin, or of something that cannot be called
        return []
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]


def sources_of(paths: Iterable[str]) -> dict[str, Path]:
    """Returns the files of the user's own code, by name of the module, with a name that no other one has.

    They are those of the named modules that have been imported, and of the modules beside and below them, which they
    may have imported; none of a package that is installed.

    Args:
        paths: import paths, "package.module:attribute".
    """
    files = {
        name: Path(file)
        for name, module in list(sys.modules.items())
        if (file := getattr(module, "__file__", None))
        and file.endswith(".py")
        and "site-packages" not in Path(file).parts
    }
    named = {name for path in paths if (name := path.partition(":")[0]) in files}
    folders = {files[name].parent for name in named}
    others = {__name__.partition(".")[0], "__main__", *sys.stdlib_module_names}
    return {
        name: file
        for name, file in sorted(files.items())
        if name in named or (name.partition(".")[0] not in others and folders & set(file.parents))
    }


def search(folders: Iterable[str]) -> None:
    """Makes Python look for modules in folders, after all others: a user's file must not hide a package's."""
    for folder in folders:
        if folder not in searched:
            searched.append(folder)
        if folder not in sys.path:
            sys.path.append(folder)
            invalidate_caches()


def place_of(error: BaseException) -> str:
    """Returns where an error was raised, and the error: "at mynet.py:12 (NameError: …)"."""
    text = f"{type(error).__name__}: {one_line(error)}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"at {error.filename}:{error.lineno} ({type(error).__name__}: {error.msg})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file() and frame.filename != __file__ and "importlib" not in frame.filename
    ]
    outside = [frame for frame in frames if "site-packages" not in frame.filename]
    if not (chosen := outside or frames):
        return f"({text})"
    return f"at {chosen[-1].filename}:{chosen[-1].lineno} ({text})"
