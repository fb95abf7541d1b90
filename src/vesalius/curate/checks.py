"""Quality control of masks: completeness, left and right, pieces, volumes in millilitres, and how good a map was.

A check finds and says; it changes nothing. Arrays are ``[D, H, W]`` whose first axis grows to the patient's right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesalius.data.class_tables import ClassTable
from vesalius.data.label_tables import CONNECTIVITY

Mask = NDArray[np.bool_]
Check = Literal["missing", "side", "pieces", "volume"]
PIECE = 0.01
"""Share of a structure from which a piece apart from the largest is worth a look."""
FAR = 3.5
"""Robust standard deviations from the median, of the logarithm of the volume, from which a volume is odd."""
ENOUGH = 5
"""Cases from which volumes are compared."""


@dataclass(frozen=True)
class Finding:
    """What is odd about a structure of a case.

    Args:
        case, structure: which.
        check: what found it.
        text: for people.
    """

    case: str
    structure: str
    check: Check
    text: str


class MapQuality(TypedDict):
    """How well a map marks what is wrong, over voxels; NaN where nothing is wrong, right, or marked."""

    sensitivity: float
    specificity: float
    precision: float


def check_case(
    case: str,
    read: Callable[[str], Mask | None],
    table: ClassTable,
    *,
    spacing: Sequence[float],
) -> tuple[list[Finding], dict[str, float]]:
    """Look through one case, a structure at a time.

    Args:
        case: its name in the findings.
        read: the mask of a structure, None where there is none.
        table: the structures, their rules and pairs.
        spacing: mm along the axes.

    Returns:
        Findings, and the volume of each structure in ml; paired organs under the pair's name, too.

    >>> table = ClassTable.from_dict(
    ...     {"classes": ["kidney_right", "kidney_left"], "pairs": {"kidney": ["kidney_right", "kidney_left"]}}
    ... )
    >>> masks = {"kidney_right": np.array([1, 1, 0, 0]), "kidney_left": np.array([0, 0, 1, 1])}
    >>> read = lambda name: masks[name].astype(bool).reshape(4, 1, 1)
    >>> findings, volumes = check_case("ct-1", read, table, spacing=(10, 10, 10))
    >>> [(one.structure, one.check) for one in findings], volumes["kidney"]
    ([('kidney', 'side')], 4.0)
    """
    findings: list[Finding] = []
    volumes: dict[str, float] = {}
    middles: dict[str, float] = {}
    for entry in table.classes:
        mask = read(entry.name)
        if mask is None:
            findings.append(Finding(case, entry.name, "missing", "has no mask"))
            continue
        volumes[entry.name] = volume_ml(mask, spacing)
        if not mask.any():
            continue
        middles[entry.name] = float(ndimage.center_of_mass(mask)[0])
        if entry.kind == "organ" and entry.rule in ("largest", "sides"):
            sizes = piece_sizes(mask)
            apart = [size / sum(sizes) for size in sizes[1:] if size > PIECE * sum(sizes)]
            if apart:
                text = f"in {len(apart) + 1} pieces; all but the largest hold {100 * sum(apart):.0f} % of it"
                findings.append(Finding(case, entry.name, "pieces", text))
    for pair, (right, left) in table.pairs.items():
        if right in volumes and left in volumes:
            volumes[pair] = volumes[right] + volumes[left]
        if right in middles and left in middles and middles[right] <= middles[left]:
            findings.append(Finding(case, pair, "side", f"{right} lies to the left of {left}"))
    return findings, volumes


def volume_ml(mask: Mask, spacing: Sequence[float]) -> float:
    """Millilitres.

    >>> volume_ml(np.ones((10, 10, 10), bool), (1, 1, 2.5))
    2.5
    """
    return float(np.count_nonzero(mask) * prod(spacing) / 1000)


def piece_sizes(mask: Mask) -> list[int]:
    """Voxels of each connected component (26 neighbours), largest first."""
    labels, _ = ndimage.label(mask, CONNECTIVITY)
    return sorted((int(size) for size in np.bincount(labels.ravel())[1:]), reverse=True)


def odd_volumes(volumes: Mapping[str, Mapping[str, float]], *, far: float = FAR) -> list[Finding]:
    """Structures whose volume is unlike that of the other cases.

    The distance is that of the logarithms from their median, in robust standard deviations (1.4826 times the median
    absolute deviation, at least a tenth of an e-fold); a volume of 0 is left to the reader, who knows of surgery.

    Args:
        volumes: case -> structure -> ml.
        far: how many are odd.

    >>> [one.case for one in odd_volumes({**{f"ct-{n}": {"liver": 1400.0 + n} for n in range(9)}, "x": {"liver": 90}})]
    ['x']
    """
    findings = []
    for structure in dict.fromkeys(name for case in volumes.values() for name in case):
        there = {case: values[structure] for case, values in volumes.items() if values.get(structure, 0) > 0}
        if len(there) < ENOUGH:
            continue
        logs = np.log(list(there.values()))
        middle = float(np.median(logs))
        spread = max(1.4826 * float(np.median(np.abs(logs - middle))), 0.1)
        for (case, volume), log in zip(there.items(), logs, strict=True):
            if abs(log - middle) > far * spread:
                text = f"{volume:.4g} ml, where the median case has {np.exp(middle):.4g} ml"
                findings.append(Finding(case, structure, "volume", text))
    return findings


def map_quality(attended: Mask, wrong: Mask) -> MapQuality:
    """How well an attention map marks the voxels that a correction changed.

    Args:
        attended: where the map asks for attention.
        wrong: where the proposal and the truth differ.

    >>> map_quality(np.array([True, True, False, False]), np.array([True, False, False, False]))
    {'sensitivity': 1.0, 'specificity': 0.6666666666666666, 'precision': 0.5}
    """
    hit, marked, bad = (int(np.count_nonzero(mask)) for mask in (attended & wrong, attended, wrong))
    good = wrong.size - bad
    nan = float("nan")
    return {
        "sensitivity": hit / bad if bad else nan,
        "specificity": (good - (marked - hit)) / good if good else nan,
        "precision": hit / marked if marked else nan,
    }
