"""Pre-training systems, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vesalius.errors import ConfigError, nearest

SYSTEMS = {
    "usfm": "vesalius.pretrain.usfm:USFM",
    "deblurring": "vesalius.pretrain.deblurring:Deblurring",
    "brainsegfounder": "vesalius.pretrain.brainsegfounder:BrainSegFounder",
    "universal": "vesalius.pretrain.universal:Universal",
}


def system(name: str) -> type[Any]:
    """The LightningModule of a system; its file also holds its config and `PRESETS`.

    Raises:
        ConfigError: there is no such system.

    >>> system("usfm").SYSTEM
    'usfm'
    """
    if name not in SYSTEMS:
        raise ConfigError(f"unknown system {name!r}", remedy=nearest(name, SYSTEMS))
    module, _, attribute = SYSTEMS[name].partition(":")
    return getattr(import_module(module), attribute)


def stage_presets(name: str, stage: int = 1) -> dict[str, Any]:
    """The configurations of a system's stage by preset; most systems have one stage.

    Raises:
        ConfigError: there is no such system, or it has no such stage.

    >>> stage_presets("brainsegfounder", 2)["paper"].lr
    6e-06
    """
    home = import_module(system(name).__module__)
    stages = getattr(home, "STAGES", {1: home.PRESETS})
    if stage not in stages:
        raise ConfigError(f"{name} has no stage {stage}", remedy=f"known: {', '.join(map(str, stages))}")
    return dict(stages[stage])
