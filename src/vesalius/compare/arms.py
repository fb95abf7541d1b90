"""What is compared: methods with their settings, and the controls without which a gain means nothing.

An arm is written ``METHOD`` or ``METHOD:SETTING=VALUE:SETTING=VALUE``, with the settings of `vesalius.adapt.methods`:
``ept,vpt:layers=shallow,lora:rank=4``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from vesalius.adapt import METHODS, methods
from vesalius.errors import ConfigError, nearest

BASELINE = "linear"
"""The arm that every other one is compared with."""
DEFAULT = ("linear", "mlp3", "partial1", "bitfit", "lora", "adapter", "vp", "vpt", "ssf", "ept", "full")
CONTROLLED = ("ept", "vpt")
"""Methods whose prompts, left as they were drawn, change the trunk already."""


@dataclass(frozen=True)
class Arm:
    """One way to adapt a backbone.

    Args:
        name: as it is written and shown; unique.
        method: a name of `vesalius.adapt.METHODS`.
        changes: settings that differ from the method's own.
        controls: the arm that it is a control of, if it is one.
    """

    name: str
    method: str
    changes: tuple[tuple[str, Any], ...] = ()
    controls: str | None = None

    @property
    def config(self) -> Any:
        """The method's settings."""
        return methods.settings(self.method, dict(self.changes))

    @property
    def reads_frozen_features(self) -> bool:
        """Whether the trunk's output does not change in training, so that it is computed once."""
        return methods.reads_frozen_features(self.method, self.config)


def read_arms(words: Sequence[str], *, controls: bool = True) -> tuple[Arm, ...]:
    """The arms that `words` name, each control after its arm; the baseline is always among them, first.

    Args:
        words: arms, in words or separated by commas.
        controls: add to every EPT or VPT arm itself with its prompts frozen, and to every EPT arm the one with a single
            logit a token that starts at ln length.

    Raises:
        ConfigError: a method or a setting that is not known, or one arm twice.

    >>> [arm.name for arm in read_arms(["ept:length=5,lora", "bitfit"])]
    ['linear', 'ept:length=5', 'ept-frozen:length=5', 'ept-collapsed:length=5', 'lora', 'bitfit']
    """
    named = split_words(words)
    arms = [] if BASELINE in named else [Arm(BASELINE, BASELINE)]
    for word in named:
        arm = _read(word)
        arms += [arm, *(_controls(arm) if controls else ())]
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name} is named twice", remedy="name every method once, or with other settings")
    return tuple(sorted(arms, key=lambda arm: arm.name != BASELINE))


def split_words(words: Sequence[str]) -> list[str]:
    """The parts of `words` between commas; those within brackets hold together.

    >>> split_words(["ept:layers=[0,1],lora", "linear"])
    ['ept:layers=[0,1]', 'lora', 'linear']
    """
    parts = [part.strip() for word in words for part in re.split(r",(?![^\[]*\])", word)]
    return [part for part in parts if part]


def _read(word: str) -> Arm:
    method, *rest = word.split(":")
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", remedy=nearest(method, METHODS))
    changes: dict[str, Any] = {}
    for part in rest:
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{word!r}: {part!r} sets nothing", remedy="write METHOD:SETTING=VALUE")
        changes[name] = _value(value)
    defaults = methods.settings(method)
    methods.settings(method, changes)  # tells of a setting that there is not
    for name, value in changes.items():
        default = getattr(defaults, name)
        if isinstance(default, int | float) and not _fits(value, default):
            raise ConfigError(f"{word!r}: {name} cannot be {value!r}", remedy=f"its own value is {default!r}")
    return Arm(word, method, tuple(changes.items()))


def _value(text: str) -> Any:
    value = yaml.safe_load(text)
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, default: float | bool) -> bool:
    """Whether a value is of the default's kind; a whole number may stand for a fraction."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, int if isinstance(default, int) else int | float)


def _controls(arm: Arm) -> list[Arm]:
    if arm.method not in CONTROLLED or arm.config.frozen:
        return []
    changes: Mapping[str, Any] = dict(arm.changes)
    suffix = arm.name.removeprefix(arm.method)

    def control(what: str, **others: Any) -> Arm:
        return Arm(f"{arm.method}-{what}{suffix}", arm.method, tuple({**changes, **others}.items()), arm.name)

    found = [control("frozen", frozen=True)]
    if arm.method == "ept" and arm.config.length > 1 and arm.config.mode == "concat":
        start = arm.config.init_logit
        found.append(control("collapsed", length=1, init_logit=math.log(arm.config.length) if start is None else start))
    return found
