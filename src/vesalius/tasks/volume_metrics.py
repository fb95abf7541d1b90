"""Scores of segmented volumes: overlap, surfaces in millimetres, and lesion by lesion.

A class that neither the truth nor the prediction holds has no score by the house's rule: it is NaN and counted. Papers
decide otherwise, and a mean over cases moves by tens of points with it, so that every score here takes the rule by
name (`EMPTY`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_surface_dice
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from vesalius.data.masks import IGNORE
from vesalius.data.volumes.transforms import foreground_box
from vesalius.errors import ConfigError, VesaliusError, nearest
from vesalius.tasks.metrics import defined_mean, surface_hd95

Mask = NDArray[np.bool_]
_NAN = float("nan")


@dataclass(frozen=True)
class EmptyRule:
    """The Dice, NSD and F1 of a case that lacks the class.

    Args:
        both: neither truth nor prediction holds it.
        missed: the truth alone does.
        invented: the prediction alone does.
        smooth: added to both sides of every Dice's fraction.
    """

    both: float
    missed: float = 0.0
    invented: float = 0.0
    smooth: float = 0.0


EMPTY = {
    "vesalius": EmptyRule(both=_NAN),
    "monai": EmptyRule(both=_NAN, invented=_NAN),
    "medpy": EmptyRule(both=1.0),
    "masam": EmptyRule(both=1.0),
    "sam3d": EmptyRule(both=1.0, smooth=1e-5),
    "transunet": EmptyRule(both=0.0, invented=1.0),
}
"""Rules by name: ours; MONAI's DiceMetric (BrainSegFounder, Universal Model: only cases whose truth holds the class); 1
for both empty (medpy: MA-SAM, ATLAS, BraTS); 3DSAM-adapter's, the complement of MONAI's smoothed DiceLoss; TransUNet's,
which rewards an invented organ."""


@dataclass(frozen=True)
class LesionRule:
    """What counts as one lesion.

    Args:
        dilation: voxels by which true lesions are grown (18-connected) before those that touch are one, and before a
            predicted one is looked for in them.
        least: voxels below which a true lesion is not scored.
    """

    dilation: int = 0
    least: int = 0


LESIONS = {"atlas": LesionRule(), "brats2023": LesionRule(dilation=3, least=50)}
"""By name: any shared voxel finds a lesion (ATLAS v2.0); the lesion-wise scores of BraTS 2023."""


def mask_scores(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    spacing: Sequence[float] | None = None,
    tolerance: float = 1.0,
    empty: str = "vesalius",
) -> dict[str, float]:
    """Scores of one class of one case.

    Args:
        prediction, truth: bool ``[D, H, W]``.
        spacing: mm along the axes; without it, distances and tolerance are in voxels.
        tolerance: mm by which surfaces may differ for the normalised surface Dice (Nikolov et al. 2021).
        empty: name of the rule for masks without a voxel, see `EMPTY`.

    Returns:
        dice; nsd (areas of the surfaces within the tolerance, by marching cubes); hd95, NaN unless both masks hold
        something.

    Raises:
        ConfigError: no such rule.

    >>> truth = np.zeros((8, 8, 8), bool)
    >>> truth[2:6, 2:6, 2:6] = True
    >>> mask_scores(truth, truth, spacing=(1, 1, 2))
    {'dice': 1.0, 'nsd': 1.0, 'hd95': 0.0}
    >>> mask_scores(truth & False, truth & False, empty="medpy")["dice"]
    1.0
    """
    p, t = _bools(prediction, truth)
    lacking = _lacking(bool(p.any()), bool(t.any()), empty)
    smooth = EMPTY[empty].smooth
    if lacking is not None:
        return {"dice": _dice(p, t, smooth) if smooth else lacking, "nsd": lacking, "hd95": _NAN}
    box = _box(p | t)
    p, t = p[box], t[box]
    steps = None if spacing is None else tuple(float(step) for step in spacing)
    return {
        "dice": _dice(p, t, smooth),
        "nsd": surface_dice(p, t, spacing=steps, tolerance=tolerance),
        "hd95": surface_hd95(p, t, spacing=steps),
    }


def surface_dice(
    prediction: Mask, truth: Mask, *, spacing: tuple[float, ...] | None = None, tolerance: float = 1.0
) -> float:
    """Share of both surfaces that lies within `tolerance` of the other; NaN where there is none.

    Args:
        prediction, truth: bool ``[D, H, W]``.
        spacing: mm along the axes.  tolerance: mm (or voxels without a spacing).
    """
    # A surface at the border of the array would otherwise have no outer side.
    p, t = (torch.from_numpy(np.pad(mask, 1))[None, None].float() for mask in (prediction, truth))
    steps = spacing or (1.0, 1.0, 1.0)
    with warnings.catch_warnings():  # MONAI calls its own deprecated argument
        warnings.simplefilter("ignore", FutureWarning)
        return float(
            compute_surface_dice(p, t, [tolerance], include_background=True, spacing=steps, use_subvoxels=True)
        )


def lesion_scores(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    spacing: Sequence[float] | None = None,
    rule: str | LesionRule = "atlas",
    empty: str = "vesalius",
) -> dict[str, float]:
    """Lesion by lesion: a connected component (26 neighbours) is a lesion.

    A true lesion is found if a predicted one shares a voxel with it; a predicted lesion that shares none with any is
    false. Several predicted lesions within a true one find it once.

    Args:
        prediction, truth: bool ``[D, H, W]``.
        spacing: mm along the axes, for volumes.
        rule: of what is one lesion, by name (`LESIONS`) or itself.
        empty: name of the rule for f1 and lesion_dice of masks without a voxel, see `EMPTY`.

    Returns:
        f1, sensitivity, precision (NaN without a true, without a predicted lesion); lesion_dice (Dice of each true
        lesion with the predicted ones that find it, 0 for each false one, a mean over both); found, missed, false,
        count_difference (absolute), volume_difference (absolute, mm^3, or voxels without a spacing).

    Raises:
        ConfigError: no such rule.
    """
    p, t = _bools(prediction, truth)
    if isinstance(rule, str):
        if rule not in LESIONS:
            raise ConfigError(f"unknown lesion rule {rule!r}", remedy=nearest(rule, LESIONS))
        rule = LESIONS[rule]
    lacking = _lacking(bool(p.any()), bool(t.any()), empty)
    voxel = float(np.prod(spacing)) if spacing is not None else 1.0
    difference = abs(int(p.sum()) - int(t.sum())) * voxel
    box = _box(p | t, margin=rule.dilation + 1)
    p, t = p[box], t[box]
    predicted, predictions = ndimage.label(p, np.ones((3, 3, 3)))
    true, lesions = ndimage.label(_grown(t, rule.dilation), np.ones((3, 3, 3)))
    true *= t
    overlaps, finders = [], set()
    for k in range(1, lesions + 1):
        lesion = true == k
        touching = set(np.unique(predicted[_grown(lesion, rule.dilation)])) - {0}
        finders |= touching
        if lesion.sum() >= rule.least:
            overlaps.append(_dice(np.isin(predicted, list(touching)), lesion) if touching else 0.0)
    found = sum(overlap > 0 for overlap in overlaps)
    missed, false = len(overlaps) - found, predictions - len(finders)
    total = 2 * found + missed + false
    return {
        "f1": lacking if lacking is not None else _ratio(2 * found, total),
        "sensitivity": _ratio(found, len(overlaps)),
        "precision": _ratio(found, found + false),
        "lesion_dice": lacking if lacking is not None else _ratio(sum(overlaps), len(overlaps) + false),
        "found": found,
        "missed": missed,
        "false": false,
        "count_difference": abs(predictions - lesions),
        "volume_difference": difference,
    }


def case_scores(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    classes: Sequence[str],
    annotated: Sequence[bool] | None = None,
    spacing: Sequence[float] | None = None,
    tolerance: float | Mapping[str, float] = 1.0,
    lesions: Mapping[str, str] | None = None,
    empty: str = "vesalius",
) -> dict[str, dict[str, float]]:
    """Scores of every class of one case.

    Args:
        prediction, truth: ``[D, H, W]`` integers, value i + 1 = ``classes[i]`` (255 in the truth counts for nothing);
            or ``[K, D, H, W]`` bool, a mask for each class where they overlap, as BraTS's regions do.
        classes: foreground names.
        annotated: ``[K]``, the classes that the case was annotated for; the others have no scores.
        spacing: mm along the axes.
        tolerance: mm for the surface Dice, for all classes or by name.
        lesions: the rule (`LESIONS`) of classes that are also scored lesion by lesion.
        empty: see `EMPTY`.

    Returns:
        class -> `mask_scores`, and `lesion_scores` where asked; voxels, predicted_voxels.

    Raises:
        VesaliusError: the shapes do not fit.
    """
    p, t = np.asarray(prediction), np.asarray(truth)
    apart = t.ndim == 4
    if p.shape != t.shape or t.ndim not in (3, 4) or (apart and len(t) != len(classes)):
        raise VesaliusError(
            f"a prediction of shape {list(p.shape)} against a truth of {list(t.shape)} with {len(classes)} classes",
            remedy="compare at the image's own size",
        )
    scores: dict[str, dict[str, float]] = {}
    for k, name in enumerate(classes):
        if annotated is not None and not annotated[k]:
            continue
        a, b = (p[k].astype(bool), t[k].astype(bool)) if apart else ((p == k + 1) & (t != IGNORE), t == k + 1)
        reach = tolerance[name] if isinstance(tolerance, Mapping) else tolerance
        scores[name] = mask_scores(a, b, spacing=spacing, tolerance=reach, empty=empty)
        if lesions and name in lesions:
            scores[name] |= lesion_scores(a, b, spacing=spacing, rule=lesions[name], empty=empty)
        scores[name] |= {"voxels": int(b.sum()), "predicted_voxels": int(a.sum())}
    return scores


def summarise(cases: Sequence[Mapping[str, Mapping[str, float]]], classes: Sequence[str]) -> dict[str, Any]:
    """A mean over the cases of `case_scores`, for every class and over the classes.

    Returns:
        per_class: name -> the mean of each score over the cases that have one, n (cases whose truth holds the class),
        empty, missed, invented and unannotated (cases); and the same scores as means over classes.
    """
    names = list(dict.fromkeys(key for case in cases for scores in case.values() for key in scores))
    means = [name for name in names if name not in ("voxels", "predicted_voxels")]
    per_class: dict[str, dict[str, float]] = {}
    for name in classes:
        rows = [case[name] for case in cases if name in case]
        held = [(row["voxels"] > 0, row["predicted_voxels"] > 0) for row in rows]
        per_class[name] = {
            **{key: defined_mean(np.array([row[key] for row in rows if key in row])) for key in means},
            "n": sum(truth for truth, _ in held),
            "empty": held.count((False, False)),
            "missed": held.count((True, False)),
            "invented": held.count((False, True)),
            "unannotated": len(cases) - len(rows),
        }
    over = {key: defined_mean(np.array([row[key] for row in per_class.values()])) for key in means}
    return {"n": len(cases), **over, "per_class": per_class}


def _lacking(predicted: bool, true: bool, empty: str) -> float | None:
    """The score of a case that lacks the class, None where both masks hold it."""
    if empty not in EMPTY:
        raise ConfigError(f"unknown rule for empty masks {empty!r}", remedy=nearest(empty, EMPTY))
    rule = EMPTY[empty]
    if predicted and true:
        return None
    if true:
        return rule.missed
    return rule.invented if predicted else rule.both


def _bools(prediction: ArrayLike, truth: ArrayLike) -> tuple[Mask, Mask]:
    p, t = np.asarray(prediction).astype(bool), np.asarray(truth).astype(bool)
    if p.shape != t.shape or p.ndim != 3:
        raise VesaliusError(
            f"a prediction of shape {list(p.shape)} against a truth of {list(t.shape)}",
            remedy="compare volumes at the image's own size",
        )
    return p, t


def _box(mask: Mask, margin: int = 1) -> tuple[slice, ...]:
    """The box of a mask and a margin: distances are computed in it, not in the whole volume."""
    spans = foreground_box(mask)
    return tuple(
        slice(max(span.start - margin, 0), min(span.stop + margin, side))
        for span, side in zip(spans, mask.shape, strict=True)
    )


def _grown(mask: Mask, voxels: int) -> Mask:
    if not voxels:
        return mask
    grown: Mask = ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 2), iterations=voxels)
    return grown


def _dice(p: Mask, t: Mask, smooth: float = 0.0) -> float:
    both, sizes = int(np.count_nonzero(p & t)), int(np.count_nonzero(p)) + int(np.count_nonzero(t))
    return _ratio(2 * both + smooth, sizes + smooth)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else _NAN
