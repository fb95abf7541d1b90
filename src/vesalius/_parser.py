"""Options from a function's signature and docstring, through jsonargparse."""

from __future__ import annotations

import inspect
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser

from vesalius.errors import ConfigError, nearest

SHORT = {"output": "-o", "out": "-o"}  # the one abbreviation that people expect


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
        mismatch = re.match(r'Parser key "([^"]+)":.*Given value: (.*)', text)
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
    epilog: str = "",
) -> dict[str, Any] | None:
    """The keyword arguments that `words` mean for `function`; None when only help was asked for.

    Args:
        given: arguments already known: they take the function's first parameters.
        positional: parameters without a flag, in order; a sequence takes several words.
        presets: preset name -> dataclass instance: the options of the parameter `model`, as ``--model.key``, with
            the values of the preset that ``--preset`` names.

    Raises:
        ConfigError: an unknown option (the nearest is named) or a value of another type.
    """
    docs = parse_docstring(inspect.getdoc(function) or "")
    notes = {p.arg_name: (p.description or "").strip().rstrip(".").replace("%", "%%") for p in docs.params}
    hints = get_type_hints(function)
    parser = _Parser(
        prog=prog, description=docs.short_description, epilog=epilog, formatter_class=_Help, exit_on_error=False
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    for parameter in list(inspect.signature(function).parameters.values())[len(given) :]:
        if parameter.name == "model" and presets is not None:
            preset = _chosen(words, "--preset", parameter_default(function, "preset"))
            if preset not in presets:
                raise ConfigError(f"no preset is called {preset!r}", remedy=nearest(preset, presets))
            parser.add_class_arguments(
                type(presets[preset]), "model", default=presets[preset], instantiate=False, fail_untyped=True
            )
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        _add(parser, parameter, hints[parameter.name], notes.get(parameter.name), parameter.name in positional)
    if any(word in ("-h", "--help") for word in words):
        parser.print_help()
        return None
    if not words and any(action.required for action in parser._actions):
        parser.print_help()
        raise ConfigError("something must be given", remedy="see the examples above")
    values = parser.parse_args(list(words))
    keywords = {key: value for key, value in values.as_dict().items() if key != "config"}
    if presets is not None and "model" in keywords:
        keywords["model"] = _changes(keywords["model"], presets[preset])
    return keywords


def parameter_default(function: Callable[..., Any], name: str) -> Any:
    """The default of a parameter."""
    return inspect.signature(function).parameters[name].default


def _add(parser: _Parser, parameter: inspect.Parameter, hint: Any, note: str | None, positional: bool) -> None:
    name, required = parameter.name, parameter.default is parameter.empty
    several = _sequence_of(hint)
    options: dict[str, Any] = {"help": note or ""}
    if positional:
        if several is not None:
            options["nargs"] = "+"
        parser.add_argument(name, type=several or hint, **options)
        return
    flags = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
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


def _chosen(words: Sequence[str], flag: str, default: str) -> str:
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
    return {key: value for key, value in given.items() if value != getattr(preset, key)}
