"""Two lungs from one mask of both (AbdomenAtlas, Li 2024): components, single lungs, and lungs that touch.

Arrays are ``[D, H, W]`` bool, the first axis growing to the patient's right and the last to the head.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vesalius.data.label_tables import CONNECTIVITY

Pair = tuple[np.ndarray, np.ndarray]
"""The right lung and the left one."""
UNEQUAL = 4.0  # how much larger one lung may be before something is wrong
WIDE, NARROW, BULGE = 20, 7, 200  # slices of the two running means; voxels above the narrow one


def lung_pair(both: np.ndarray, *, fill: bool = False) -> Pair | None:
    """The two largest components, right and left; None if there are fewer than two.

    Args:
        both: the union of both lungs.
        fill: fill the holes of each.
    """
    labels, count = ndimage.label(both, CONNECTIVITY)
    if count < 2:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    one, two = (labels == n + 1 for n in np.argsort(-sizes, kind="stable")[:2])
    left_first = np.argwhere(one)[:, 0].mean() < np.argwhere(two)[:, 0].mean()
    right, left = (two, one) if left_first else (one, two)
    if fill:
        right, left = ndimage.binary_fill_holes(right), ndimage.binary_fill_holes(left)
    return np.asarray(right), np.asarray(left)


def separate_lungs(both: np.ndarray) -> Pair:
    """The lungs apart, whatever keeps them together.

    If one of the two components is more than four times the other, it is either a single lung (all of it in one half of
    the volume) or both in one piece. Then slices whose area bulges out of its neighbours' are blanked, and without
    such slices the piece is eroded until it falls into two, whose rim goes to the nearer one. It ends when the two are
    alike, or with the plain components when nothing separates them.
    """
    both = both.copy()
    pair = lung_pair(both, fill=True)
    if pair is None:
        return np.zeros_like(both), np.zeros_like(both)
    larger = _larger(pair)
    if not _unequal(pair):
        return pair
    middle = both.shape[0] // 2
    left, right = int(larger[:middle].sum()), int(larger[middle:].sum())
    nothing = np.zeros_like(both)
    if (right + 1) / (left + 1) > UNEQUAL:
        return larger, nothing
    if (left + 1) / (right + 1) > UNEQUAL:
        return nothing, larger
    parted: Pair | None = pair
    while parted is not None and _unequal(parted):
        piece = _larger(parted)
        bulging = _bulging(piece)
        if bulging.size:
            both[:, :, bulging] = False
            parted = lung_pair(both, fill=True)
        else:
            parted = erode_apart(piece)
    return parted or lung_pair(both, fill=True) or (nothing, nothing)


def _unequal(pair: Pair) -> bool:
    sizes = sorted(int(side.sum()) for side in pair)
    return sizes[1] > UNEQUAL * sizes[0]


def _larger(pair: Pair) -> np.ndarray:
    """The larger one; of equal ones the left."""
    right, left = pair
    return right if right.sum() > left.sum() else left


def _bulging(piece: np.ndarray) -> np.ndarray:
    """Slices whose area is above both the mean + 2 std of the 20 around them and the mean of the 7 around + 200."""
    areas = piece.sum(axis=(0, 1))
    slices = np.flatnonzero(areas)
    areas = areas[slices].astype(float)
    found = []
    for n, area in enumerate(areas):
        wide = areas[max(n - WIDE // 2, 0) : n + WIDE // 2]
        narrow = areas[max(n - NARROW // 2, 0) : n + NARROW // 2 + 1]
        if len(wide) > 1 and area > wide.mean() + 2 * wide.std(ddof=1) and area > narrow.mean() + BULGE:
            found.append(slices[n])
    return np.array(found, dtype=int)


def erode_apart(piece: np.ndarray) -> Pair | None:
    """Erode until two components of like size are left, and give the rim to the nearer one; None if none ever are."""
    seeds = _seeds(piece)
    if seeds is None:
        return None
    right, left = seeds
    rim = piece & ~right & ~left
    to_right, to_left = (ndimage.distance_transform_edt(~seed) for seed in seeds)
    right, left = right | (rim & (to_right < to_left)), left | (rim & (to_left < to_right))
    return np.asarray(ndimage.binary_fill_holes(right)), np.asarray(ndimage.binary_fill_holes(left))


def _seeds(piece: np.ndarray) -> Pair | None:
    while piece.any():
        piece = np.asarray(ndimage.binary_erosion(piece, CONNECTIVITY))
        seeds = lung_pair(piece)
        if seeds is not None and not _unequal(seeds):
            return seeds
    return None
