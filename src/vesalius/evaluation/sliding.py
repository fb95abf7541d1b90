"""Whole volumes through a network that sees a window at a time, in bounded memory.

MONAI's ``sliding_window_inference`` keeps the scores of every class at every voxel: 32 classes of 512 x 512 x 600 are
19 GiB. Here the windows go along the longest axis, and a slice is decided and forgotten as soon as no window to come
reaches it, so that only a slab of scores as thick as a window is kept. Windows, weights and sums are MONAI's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor
from torch.nn import functional as F

from vesalius.data.progress import track
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.memory import check_memory
from vesalius.errors import ConfigError
from vesalius.images import Image

Network = Callable[[Tensor], Tensor]
"""From windows ``[B, C, *roi]`` to scores ``[B, K, *roi]``."""
Decide = Callable[[Tensor], Tensor]
"""From scores ``[K, d, H, W]`` to what is kept of them, ``[d, H, W]`` or ``[J, d, H, W]``, voxel by voxel."""


def argmax(scores: Tensor) -> Tensor:
    """Exclusive classes: the number of the highest score, uint8."""
    best, number = scores[0], torch.zeros(scores.shape[1:], dtype=torch.uint8)
    for k in range(1, len(scores)):  # several times faster than torch.argmax over the slowest axis
        number.masked_fill_(scores[k] > best, k)
        best = torch.maximum(best, scores[k])
    return number


def above(threshold: float = 0.5) -> Decide:
    """Classes that may overlap: a mask for each, uint8, where the sigmoid of its score is above `threshold`.

    >>> above(0.5)(torch.tensor([[[[-1.0, 2.0]]]])).tolist()
    [[[[0, 1]]]]
    """
    limit = float(torch.logit(torch.tensor(threshold, dtype=torch.float64)))
    return lambda scores: (scores > limit).to(torch.uint8)


@torch.inference_mode()
def sliding_window(
    network: Network,
    volume: Tensor,
    *,
    roi: tuple[int, int, int],
    prepare: Callable[[Tensor], Tensor] = Tensor.float,
    decide: Decide = argmax,
    classes: Sequence[int] | None = None,
    overlap: float = 0.5,
    blending: str = "gaussian",
    weights: Tensor | None = None,
    flips: Sequence[int] = (),
    batch: int = 1,
    half: bool = False,
    device: str | torch.device = "cpu",
    title: str | None = "predicting",
) -> np.ndarray:
    """Scores of overlapping windows, blended, and decided slice by slice.

    Args:
        network: in evaluation mode, on `device`. What it computes in between is its own memory.
        volume: ``[C, D, H, W]`` of any dtype, memory-mapped perhaps: a window at a time is read.
        roi: voxels of a window. A smaller volume is filled up with 0 on both sides.
        prepare: from a part of the volume to the network's intensities, such as `VolumeContract.normalise`.
        decide: what is kept of the scores.
        classes: the outputs that are needed, all by default; others cost no memory.
        overlap: of neighbouring windows, in [0, 1).
        blending: gaussian (a bell of an eighth of the window, so that its border counts little) or constant.
        weights: ``roi``-shaped, instead of `blending`.
        flips: axes (0, 1, 2) to mirror: scores are means over all combinations of them, 2^n times the work.
        batch: windows at a time. 1 for networks that normalise by the statistics of their batch.
        half: the network runs under autocast (bfloat16 on a CPU, float16 elsewhere) and the scores are kept in float16.
        device: where the network is.
        title: of the progress bar; None for none.

    Returns:
        What `decide` says of every voxel: ``[D, H, W]`` or ``[J, D, H, W]``, in its dtype.

    Raises:
        ConfigError: an option makes no sense.
        VesaliusError: less memory is free than `sliding_memory` says.
    """
    if volume.ndim != 4:
        raise ConfigError(f"a volume of shape {list(volume.shape)}", remedy="give [C, D, H, W]")
    if not 0 <= overlap < 1 or batch < 1 or not set(flips) <= {0, 1, 2}:
        raise ConfigError(f"overlap {overlap}, batch {batch}, flips {list(flips)}", remedy="see sliding_window")
    if weights is None:
        weights = compute_importance_map(roi, mode=blending, sigma_scale=0.125)
    size = tuple(volume.shape[1:])
    sweep = int(np.argmax(size))
    starts = [_starts(side, width, overlap) for side, width in zip(size, roi, strict=True)]
    slab = _Slab(size, roi, sweep, decide, half)
    context = torch.autocast(torch.device(device).type, torch.bfloat16 if _is_cpu(device) else torch.float16)
    turns = [turn for n in range(len(flips) + 1) for turn in itertools.combinations(flips, n)]

    def scores_of(corners: list[tuple[int, ...]]) -> Tensor:
        windows = torch.stack([_window(volume, corner, roi, prepare) for corner in corners]).to(device)
        total: Tensor | None = None
        for turn in turns:
            dims = [axis - 3 for axis in turn]
            with context if half else nullcontext():
                scores = network(windows.flip(dims) if dims else windows)
            scores = scores if classes is None else scores[:, list(classes)]
            scores = scores.flip(dims) if dims else scores
            total = scores if total is None else total + scores
        assert total is not None
        return (total / len(turns) if len(turns) > 1 else total).to("cpu", slab.dtype)

    weight = _cut(weights.to(slab.dtype), size, roi)
    corners = sorted(itertools.product(*starts), key=lambda corner: corner[sweep])
    layers = [list(layer) for _, layer in itertools.groupby(corners, key=lambda corner: corner[sweep])]
    steps = [layer[k : k + batch] for layer in layers for k in range(0, len(layer), batch)]
    for step in steps if title is None else track(steps, len(steps), title):
        if step[0][sweep] > slab.first:
            slab.advance(step[0][sweep])
        for corner, scores in zip(step, scores_of(step), strict=True):
            if slab.scores is None:
                held = volume.element_size() * len(volume)
                check_memory(sliding_memory(size, roi, len(scores), half=half, batch=batch, held=held))
            slab.add(_cut(scores, size, roi), weight, corner)
    slab.advance(size[sweep])
    return slab.result()


def segment_volume(
    network: Network,
    image: Image,
    contract: VolumeContract,
    *,
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
    **options: Any,
) -> np.ndarray:
    """An image through its network's contract, `sliding_window`, and back onto its own voxels.

    Args:
        network: in evaluation mode.
        image: with the contract's channels.
        contract: what the network reads.
        finish: what is done to the whole of what was decided, on the network's voxels.
        options: of `sliding_window`.

    Returns:
        What ``decide`` says, ``[D, H, W]`` or ``[J, D, H, W]`` of ``image.size``; 0 where all around is background.
    """
    placed = contract.place(image)
    limits = contract.limits(placed)
    box = contract.foreground(placed)  # as in training: a network has not learned what air around a brain is not
    inside = sliding_window(
        network,
        torch.from_numpy(np.ascontiguousarray(placed[(slice(None), *box)])),
        roi=contract.roi,
        prepare=lambda part: contract.normalise(part, limits),
        **options,
    )
    found = np.zeros((*inside.shape[:-3], *placed.shape[1:]), inside.dtype)
    found[(..., *box)] = inside
    return contract.restore(found if finish is None else finish(found), image)


def sliding_memory(
    size: Sequence[int],
    roi: Sequence[int],
    classes: int,
    *,
    half: bool = False,
    batch: int = 1,
    kept: int = 1,
    held: int = 2,
) -> int:
    """Bytes at the peak of `sliding_window`, the network's own activations apart.

    Args:
        size: voxels of the volume.  roi: of a window.
        classes: scores that are kept of the network's.
        half, batch: as in `sliding_window`.
        kept: bytes a voxel of what is decided, 1 for `argmax`, one a class for `above`.
        held: bytes a voxel of the volume given, all channels together.

    >>> one_ct = (512, 512, 600)
    >>> [round(sliding_memory(one_ct, (96, 96, 96), 32, half=half) / 2**30, 1) for half in (False, True)]
    [4.1, 2.3]
    >>> round(sliding_memory(one_ct, (128, 128, 128), 3, held=8) / 2**30, 1)  # four MR sequences, three regions
    2.0
    """
    sweep = int(np.argmax(size))
    across = int(np.prod([side for axis, side in enumerate(size) if axis != sweep], dtype=np.int64))
    item = 2 if half else 4
    # The scores, the weights, and one class at a time while they are moved on.
    slab = (classes + 2) * min(roi[sweep], size[sweep]) * across * item
    window = batch * 4 * classes * int(np.prod(roi)) * item
    decided = 3 * classes * across * 4
    return int(slab + window + decided + (kept + held) * int(np.prod(size, dtype=np.int64)))


class _Slab:
    """The scores of the slices that windows reach now.

    Args:
        size: of the volume.  roi: of a window.
        sweep: the axis along which windows go.
        decide: what is kept of the scores of a finished slice.
        half: keep scores in float16.
    """

    def __init__(self, size: Sequence[int], roi: Sequence[int], sweep: int, decide: Decide, half: bool) -> None:
        self.size, self.sweep, self.decide = tuple(size), sweep, decide
        self.depth = min(roi[sweep], size[sweep])
        self.shape = tuple(self.depth if axis == sweep else side for axis, side in enumerate(size))
        self.dtype = torch.float16 if half else torch.float32
        self.first = 0
        self.weight = torch.zeros(self.shape, dtype=self.dtype)
        self.scores: Tensor | None = None
        self.kept: Tensor | None = None

    def add(self, scores: Tensor, weight: Tensor, corner: Sequence[int]) -> None:
        """A window's scores ``[K, *roi]``, its weights ``[*roi]``, and where it begins."""
        if self.scores is None:
            self.scores = torch.zeros(len(scores), *self.shape, dtype=self.dtype)
        begin = [start - self.first if axis == self.sweep else start for axis, start in enumerate(corner)]
        box = [slice(start, start + side) for start, side in zip(begin, weight.shape, strict=True)]
        self.weight[tuple(box)] += weight
        for total, one in zip(self.scores, scores, strict=True):
            total[tuple(box)].addcmul_(one, weight)

    def advance(self, start: int) -> None:
        """Decide the slices before `start`, and make room for as many."""
        assert self.scores is not None
        count, axis = min(start - self.first, self.depth), self.sweep
        scores, weight = self.scores.narrow(axis + 1, 0, count), self.weight.narrow(axis, 0, count)
        # Pieces of about one slice across the sweep, so that what is made of them stays small.
        across = int(np.prod(self.shape)) // self.depth
        thick = max(across * len(weight) // weight.numel(), 1)
        for k in range(0, len(weight), thick):
            decided = self.decide(scores[:, k : k + thick].float() / weight[k : k + thick].float())
            if self.kept is None:
                self.kept = torch.zeros(*decided.shape[:-3], *self.size, dtype=decided.dtype)
            place = self.kept.narrow(axis - 3, self.first, count)
            place.narrow(-3, k, decided.shape[-3]).copy_(decided)
        for part in (*self.scores, self.weight):
            part.narrow(axis, 0, self.depth - count).copy_(part.narrow(axis, count, self.depth - count).clone())
            part.narrow(axis, self.depth - count, count).zero_()
        self.first = start

    def result(self) -> np.ndarray:
        """What was decided."""
        assert self.kept is not None
        return self.kept.numpy()


def _starts(size: int, roi: int, overlap: float) -> list[int]:
    """Where windows begin along an axis, the last one moved back to end with the volume."""
    if size <= roi:
        return [0]
    step = max(int(roi * (1 - overlap)), 1)
    return sorted({part[0].start for part in dense_patch_slices((size,), (roi,), (step,))})


def _window(volume: Tensor, corner: Sequence[int], roi: Sequence[int], prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """A window ``[C, *roi]`` in the network's intensities, filled up with 0."""
    box = [slice(start, start + side) for start, side in zip(corner, roi, strict=True)]
    part = prepare(volume[(slice(None), *box)])
    lacking = [side - have for side, have in zip(roi, part.shape[1:], strict=True)]
    return F.pad(part, [amount for side in reversed(lacking) for amount in (side // 2, side - side // 2)])


def _cut(window: Tensor, size: Sequence[int], roi: Sequence[int]) -> Tensor:
    """The part of a window ``[..., *roi]`` that is not filling."""
    before = [max(side - have, 0) // 2 for side, have in zip(roi, size, strict=True)]
    box: list[Any] = [
        slice(start, start + min(side, have)) for start, side, have in zip(before, roi, size, strict=True)
    ]
    return window[(..., *box)]


def _is_cpu(device: str | torch.device) -> bool:
    return torch.device(device).type == "cpu"
