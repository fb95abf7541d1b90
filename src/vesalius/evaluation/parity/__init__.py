"""What each family of parity fixtures computes, through the library's ordinary parts: a module a system.

One small function a family. Sizes, seeds, classes and inputs come from the fixture alone, so that a fixture never seen
before works too; weights go through `vesalius.published.load.load`.
"""

from __future__ import annotations

from vesalius.evaluation.parity import (
    abdomenatlas,
    brainsegfounder,
    deblurring,
    ept,
    masam,
    sam,
    sam3d,
    transunet,
    universal,
    usfm,
    vit,
)
from vesalius.evaluation.parity.common import Adapter

FAMILIES: dict[str, Adapter] = (
    usfm.FAMILIES
    | deblurring.FAMILIES
    | vit.FAMILIES
    | ept.FAMILIES
    | brainsegfounder.FAMILIES
    | universal.FAMILIES
    | masam.FAMILIES
    | sam.FAMILIES
    | sam3d.FAMILIES
    | transunet.FAMILIES
    | abdomenatlas.FAMILIES
)
"""Fixture names without their last ``_a`` or ``_b`` -> adapter."""
