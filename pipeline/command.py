"""What every command shares: one YAML file, flags over it, and errors in one line.

A command is a pydantic model (its configuration) and a function that takes it. Values are read in
this order, later ones winning: the model's defaults, the file given with ``--config``, flags.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, get_args

from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict
from rich.console import Console

from adu.config import StrictModel, parse_config
from adu.errors import UserError
from pipeline.names import parse_forget_name, shown
from pipeline.text_files import read_yaml

ConfigT = TypeVar("ConfigT", bound=StrictModel)

# What stands for a value in ``--help``, instead of its type's name.
METAVARS = {
    "{JSON,tuple[tuple[str,...],...]}": "A,B,...",
    "tuple[str,...]": "A,B,...",
    "tuple[int,...]": "1,2,...",
    "tuple[float,...]": "0.1,0.2,...",
    "tuple[{never_shown,baseline,forget_only},...]": "never_shown,baseline,...",
    "tuple[{defaults,paper,baseline},...]": "defaults,paper,...",
    "dict[str,JSON]": "JSON",
    "dict[str,dict[str,JSON]]": "JSON",
}

# Fields of names: pydantic-settings would take commas, quotes and brackets in them for its own.
NAME_FIELDS = ("forget", "unseen_domains", "allow_uri")

# How characters are written that an encoding lacks.
ESCAPES = "backslashreplace"

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run_command(
    config_class: type[ConfigT],
    body: Callable[[ConfigT], int],
    shortcuts: Mapping[str, str],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a command from its arguments and returns its exit code.

    Args:
        config_class: The command's configuration; its docstring is the help text.
        body: The command itself; returns an exit code.
        shortcuts: Long field path to short flag, such as ``{"data.manifest": "manifest"}``.
        argv: The arguments; the process' own if None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return body(load_config(config_class, shortcuts, arguments))
    except UserError as error:
        told = LastingStream(sys.stderr)
        if debug:
            told.write(traceback.format_exc())
        told.write(f"error: {shown(str(error))}\n")
        told.flush()
        return EXIT_USER_ERROR


def plain_console(stream: TextIO | None) -> Console:
    """A console that shows names as they are: without markup, emoji codes or highlighting.

    Args:
        stream: Where it writes; None (what Python has for a closed one) for nowhere.
    """
    return Console(file=LastingStream(stream), markup=False, emoji=False, highlight=False)  # type: ignore[arg-type]


class LastingStream:
    """A text stream that takes everything: work does not end because nobody can read of it.

    What a terminal's encoding lacks is written as escapes; a full disk, a closed pipe and a
    terminal that is gone are passed over.

    Args:
        stream: Where it goes; None for nowhere.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Writes what can be written."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.write(text.encode(self.encoding, ESCAPES).decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person sees it."""
        with suppress(ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """The stream's file descriptor."""
        if self._stream is None:
            raise OSError("no stream")
        return self._stream.fileno()


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Ends the process with a command's exit code, at once: taking torch apart takes seconds."""
    code = main()
    for stream in (sys.stdout, sys.stderr):
        LastingStream(stream).flush()
    os._exit(code)


def load_config(
    config_class: type[ConfigT], shortcuts: Mapping[str, str], argv: Sequence[str]
) -> ConfigT:
    """Reads the YAML file and the flags into a validated configuration.

    Raises:
        UserError: For an unknown flag, an unreadable file or a wrong value.
        SystemExit: With code 0 after ``--help``.
    """
    parser = _Parser(
        description=inspect.getdoc(config_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the fields below")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    source: CliSettingsSource[Any] = CliSettingsSource(
        _with_flags(config_class, shortcuts),
        root_parser=parser,
        cli_parse_args=False,
    )
    _tidy_help(parser, config_class)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(f"command line: {_unknown(unknown[0], parser)}")
    parsed = vars(known)
    file, _ = parsed.pop("config"), parsed.pop("debug")
    given = {name: value for name, value in parsed.items() if value is not None}
    names = {path: given.pop(path) for path in list(given) if path.split(".")[-1] in NAME_FIELDS}
    kinds = _kinds(config_class)
    flags = source(parsed_args=_name_kinds(given, kinds))()
    for path, typed in names.items():
        flags = merge(flags, _nested(path, _typed_names(path, typed, config_class)))
    values = read_yaml(Path(file)) if file else {}
    try:
        merged = merge(_keep_kinds(values, flags, kinds), flags)
        return parse_config(config_class, merged, file or "command line")
    except UserError as error:
        # The file may be right and a flag wrong: name the source that fails by itself.
        if file and flags:
            parse_config(config_class, values, file)
            raise UserError(str(error).replace(file, "command line", 1)) from error
        raise


def _typed_names(path: str, typed: Sequence[str], config_class: type[StrictModel]) -> Any:
    """What names that were typed come to; a comma parts domains, one after a backslash does not."""
    if path.endswith("allow_uri"):
        return tuple(typed)
    if path.endswith("unseen_domains"):
        return tuple(domain for text in typed for domain in parse_forget_name(text))
    field = config_class.model_fields[path]
    # The configuration takes a forget set apart itself: a file may hold one as text, too.
    is_one_set = get_args(field.annotation)[:1] == (str,)
    return ",".join(typed) if is_one_set else tuple(typed)


def _nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage, which fills a screen."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}")


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    if not argument.startswith("-"):
        return f"'{argument}' belongs to no flag (--help lists them)"
    flag = argument.split("=")[0]
    flags = {option for action in parser._actions for option in action.option_strings}
    near = difflib.get_close_matches(flag, sorted(flags), n=2)
    hint = f"near it: {', '.join(near)}; " if near else ""
    return f"unknown flag '{flag}' ({hint}--help lists all)"


def _tidy_help(parser: argparse.ArgumentParser, config_class: type[StrictModel]) -> None:
    """Says what is typed rather than its type, and all kinds of a method, not the first alone."""
    kinds = {f"{kind.field}.name": kind for kind in _kinds(config_class)}
    for action in parser._actions:
        if isinstance(action.metavar, str):
            action.metavar = METAVARS.get(action.metavar, action.metavar)
        if action.dest in kinds:
            kind = kinds[action.dest]
            action.metavar = "{" + ",".join(kind.names) + "}"
            action.help = f"which; options of another are refused (default: {kind.default})"


@dataclass(frozen=True)
class _Kind:
    """A field that holds one of several configurations, told apart by their ``name``.

    Attributes:
        field: Its name.
        names: What there is.
        default: Which it is if nothing is said.
    """

    field: str
    names: Sequence[str]
    default: str


def _kinds(config_class: type[StrictModel]) -> list[_Kind]:
    return [
        _Kind(field, names, info.default.name)
        for field, info in config_class.model_fields.items()
        if len(names := _kind_names(info.annotation)) > 1
    ]


def _name_kinds(given: Mapping[str, Any], kinds: Sequence[_Kind]) -> dict[str, Any]:
    """Flags with ``--method NAME`` written as ``--method.name NAME``.

    pydantic-settings would take the name for the whole, and leave out all other flags of the field.

    Raises:
        UserError: If both are given and differ.
    """
    flags = dict(given)
    for kind in kinds:
        whole, key = flags.get(kind.field), f"{kind.field}.name"
        if not isinstance(whole, str) or whole.lstrip().startswith("{"):
            continue
        name = flags.setdefault(key, flags.pop(kind.field))
        if name != whole:
            raise UserError(f"command line: {kind.field} = {whole!r}: but {key} = {name!r}")
    return flags


def _keep_kinds(
    values: Mapping[str, Any], flags: Mapping[str, Any], kinds: Sequence[_Kind]
) -> dict[str, Any]:
    """A file's values that flags go over: another method takes none of the file's options."""
    kept = dict(values)
    for kind in kinds:
        if isinstance(kept.get(kind.field), str):
            kept[kind.field] = {"name": kept[kind.field]}
        below, above = kept.get(kind.field), flags.get(kind.field)
        if isinstance(below, Mapping) and isinstance(above, Mapping):
            name = below.get("name", kind.default)
            if above.get("name", name) != name:
                del kept[kind.field]
    return kept


def _kind_names(annotation: Any) -> list[str]:
    """What the field ``name`` may be, in a union of configurations that differ in it."""
    # Each of them may stand in an `Annotated`.
    configs = [getattr(kind, "__origin__", kind) for kind in get_args(annotation)]
    named = [kind for kind in configs if "name" in getattr(kind, "model_fields", {})]
    # One may have any name: a method of another package.
    allowed = [get_args(kind.model_fields["name"].annotation) for kind in named]
    return [names[0] for names in allowed if names]


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lays one tree of values over another; neither is changed."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            merged[name] = merge(old, value)
        else:
            merged[name] = value
    return merged


def _with_flags(
    config_class: type[StrictModel], shortcuts: Mapping[str, str]
) -> type[BaseSettings]:
    settings = SettingsConfigDict(
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_shortcuts=dict(shortcuts),
    )
    return type(config_class.__name__, (config_class, BaseSettings), {"model_config": settings})
