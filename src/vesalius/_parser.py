"""Options from a function's signature and docstring, through jsonargparse."""

from __future__ import annotations

import inspect
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser

from vesalius.errors import ConfigError, nearest

SHORT = {"output": "-o", "out": "-o"}  # the one abbreviation that people expect
NUMBERS = re.compile(r"-[\d.]+[,:]")
"""A value of several numbers whose first is negative, which argparse would take for an option."""


class _Help(RawDescriptionHelpFormatter):
    """Examples keep their lines; the options' column is wide enough to read."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


class _Parser(ArgumentParser):
    """Raises instead of exiting, so that a wrong option is one line like every other error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join((message or str(ex)).split())
        if text.startswith("unrecognized arguments: --"):
            wrong = text.split()[2].split("=")[0]
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            hint = nearest(wrong, known).partition("? known")
            raise ConfigError(
                f"no option is called {wrong}", remedy=hint[0] + "?" if hint[1] else f"see {self.prog} --help"
            )
        mismatch = re.match(r'Parser key "([^"]+)":.*(?:Given|Got) value: (.*)', text)
        if mismatch:
            text = f"--{mismatch[1]} cannot be {mismatch[2]!r}"
        raise ConfigError(text[:200], remedy=f"see {self.prog} --help")


def parse(
    function: Callable[..., Any],
    *,
    prog: str,
    words: Sequence[str],
    given: Sequence[Any] = (),
    positional: Sequence[str] = (),
    presets: Mapping[str, Any] | None = None,
    extra: type | None = None,
    epilog: str = "",
) -> dict[str, Any] | None:
    """The keyword arguments that `words` mean for `function`; None when only help was asked for.

    Args:
        given: arguments already known: they take the function's first parameters.
        positional: parameters without a flag, in order; a sequence takes several words.
        presets: preset name -> dataclass instance: the options of the parameter `model`, as ``--model.key``, with
            the values of the preset that ``--preset`` names.
        extra: a dataclass whose fields are the function's ``**keywords``; those that are not given are left out.

    Raises:
        ConfigError: an unknown option (the nearest is named) or a value of another type.
    """
    docs = parse_docstring(inspect.getdoc(function) or "")
    notes, hints = _notes(function), get_type_hints(function)
    parser = _Parser(
        prog=prog, description=docs.short_description, epilog=epilog, formatter_class=_Help, exit_on_error=False
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="YAML file with any of these options; --print_config writes one"
    )
    for parameter in list(inspect.signature(function).parameters.values())[len(given) :]:
        if parameter.name == "model" and presets is not None:
            preset = chosen(words, "--preset", inspect.signature(function).parameters["preset"].default)
            if preset not in presets:
                raise ConfigError(f"no preset is called {preset!r}", remedy=nearest(preset, presets))
            parser.add_class_arguments(
                type(presets[preset]), "model", default=presets[preset], instantiate=False, fail_untyped=True
            )
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            if extra is not None:
                _add_fields(parser, extra)
            continue
        _add(parser, parameter, hints[parameter.name], notes.get(parameter.name), parameter.name in positional)
    needed = [action for action in parser._actions if action.required and action.option_strings]
    shown = [*positional, *(f"{action.option_strings[0]} {action.dest.upper()}" for action in needed)]
    parser.usage = " ".join([prog, *shown, "[options]"])
    if any(word in ("-h", "--help") for word in words):
        parser.print_help()
        return None
    if not words and (needed or positional):
        raise ConfigError(f"needs {', '.join(shown)}", remedy=f"see {prog} --help")
    # What has a space is a value to argparse.
    values = parser.parse_args([f" {word}" if NUMBERS.match(word) else word for word in words])
    reserved = {name.rstrip("_"): name for name in inspect.signature(function).parameters}
    keywords = {reserved.get(key, key): value for key, value in values.as_dict().items() if key != "config"}
    if presets is not None and "model" in keywords:
        keywords["model"] = _changes(keywords["model"], presets[preset])
    optional = {item.name for item in fields(extra)} if extra is not None else set()
    return {key: value for key, value in keywords.items() if key not in optional or value is not None}


def _notes(documented: Any) -> dict[str, str]:
    """What a docstring says of each argument; several may share a line."""
    found = {}
    for parameter in parse_docstring(inspect.getdoc(documented) or "").params:
        for name in parameter.arg_name.split(", "):
            found[name] = (parameter.description or "").strip().rstrip(".").replace("%", "%%")
    return found


def _add_fields(parser: _Parser, extra: type) -> None:
    """A dataclass's fields as options without a default of their own."""
    notes, hints = _notes(extra), get_type_hints(extra)
    for item in fields(extra):
        default = None if item.default is MISSING else item.default
        note = f"{notes.get(item.name, '')} (default: {'by the preset' if default is None else default})"
        options: dict[str, Any] = {"help": note, "default": None}
        flags = list(dict.fromkeys([f"--{item.name}", f"--{item.name.replace('_', '-')}"]))
        if hints[item.name] is bool:
            parser.add_argument(*flags, action="store_true", **options)
        else:
            parser.add_argument(*flags, type=hints[item.name], **options)


def _add(parser: _Parser, parameter: inspect.Parameter, hint: Any, note: str | None, positional: bool) -> None:
    name, required = parameter.name, parameter.default is parameter.empty
    several = _sequence_of(hint)
    options: dict[str, Any] = {"help": note or ""}
    if positional:
        if several is not None:
            options["nargs"] = "+"
        parser.add_argument(name, type=several or hint, **options)
        return
    word = name.rstrip("_")  # class_, which Python reserves, is --class
    flags = [f"--{word}"] + ([f"--{word.replace('_', '-')}"] if "_" in word else [])
    if name in SHORT:
        flags.append(SHORT[name])
    if hint is bool:
        if parameter.default:
            parser.add_argument(flags[0], action=ActionYesNo(no_prefix="no_"), default=True, **options)
        else:
            parser.add_argument(*flags, action="store_true", **options)
        return
    if several is not None:
        options["nargs"] = "+"
    default = list(parameter.default) if isinstance(parameter.default, tuple) and several else parameter.default
    options |= {"required": True} if required else {"default": default}
    if default not in (None, parameter.empty):
        options["help"] = f"{options['help']} (default: {default})".strip()
    parser.add_argument(*flags, type=several or hint, **options)


def _sequence_of(hint: Any) -> Any | None:
    """The type of one element, for a list-like hint (also one of a union's members); None otherwise."""
    members = [h for h in get_args(hint) if h is not NoneType] if get_origin(hint) in (Union, UnionType) else [hint]
    for member in members:
        if get_origin(member) in (list, Sequence):
            return get_args(member)[0]
    return None


def chosen(words: Sequence[str], flag: str, default: str) -> str:
    """The value of a flag, found before parsing; in a configuration file too."""
    import yaml

    for number, word in enumerate(words):
        if word == flag and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1]
        if word == "--config" and number + 1 < len(words) and Path(words[number + 1]).is_file():
            loaded = yaml.safe_load(Path(words[number + 1]).read_text(encoding="utf-8"))
            if isinstance(loaded, dict) and flag.removeprefix("--") in loaded:
                return str(loaded[flag.removeprefix("--")])
    return default


def _changes(values: Any, preset: Any) -> dict[str, Any]:
    """Only what differs from the preset, so that a run records what the user chose."""
    given = values if isinstance(values, dict) else values.as_dict()
    changes = {}
    for key, value in given.items():
        current = getattr(preset, key)
        if is_dataclass(current) and value is not None:
            if inner := _changes(value, current):
                changes[key] = inner
        elif value != current:
            changes[key] = value
    return changes
