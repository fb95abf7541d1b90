"""Pre-training systems, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vesalius.errors import ConfigError, nearest

SYSTEMS = {
    "usfm": "vesalius.pretrain.usfm:USFM",
    "deblurring": "vesalius.pretrain.deblurring:Deblurring",
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
