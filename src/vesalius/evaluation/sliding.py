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
    return scores.argmax(0).to(torch.uint8)


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
    title: str = "predicting",
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
        title: of the progress bar.

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
    axes = (sweep, *(axis for axis in range(3) if axis != sweep))
    starts = [_starts(size[axis], roi[axis], overlap) for axis in axes]
    slab = _Slab([size[axis] for axis in axes], [min(roi[axis], size[axis]) for axis in axes], decide, half)
    context = torch.autocast(torch.device(device).type, torch.bfloat16 if _is_cpu(device) else torch.float16)
    turns = [turn for n in range(len(flips) + 1) for turn in itertools.combinations(flips, n)]

    def scores_of(corners: list[tuple[int, ...]]) -> Tensor:
        windows = torch.stack([_window(volume, corner, axes, roi, prepare) for corner in corners]).to(device)
        total: Tensor | None = None
        for turn in turns:
            dims = [axis - 3 for axis in turn]
            with context if half else nullcontext():
                scores = network(windows.flip(dims) if dims else windows)
            scores = (scores if classes is None else scores[:, list(classes)]).flip(dims)
            total = scores if total is None else total + scores
        assert total is not None
        return (total / len(turns)).to("cpu", slab.dtype)

    inside = [slice(0, side) for side in slab.roi]
    weight = _cut(weights.to(slab.dtype), size, roi).permute(axes)
    beside = list(itertools.product(*starts[1:]))
    steps = [(start, beside[k : k + batch]) for start in starts[0] for k in range(0, len(beside), batch)]
    reached = 0
    for start, places in track(steps, len(steps), title):
        if start != reached:
            slab.advance(start)
            reached = start
        for place, scores in zip(places, scores_of([(start, *place) for place in places]), strict=True):
            if slab.scores is None:
                itemsize = volume.element_size()
                check_memory(
                    sliding_memory(size, roi, len(scores), half=half, batch=batch, held=itemsize * len(volume))
                )
            slab.add(_cut(scores, size, roi).permute(0, *(axis + 1 for axis in axes)), weight, place, inside)
    slab.advance(size[sweep])
    return slab.result(axes)


def segment_volume(network: Network, image: Image, contract: VolumeContract, **options: object) -> np.ndarray:
    """An image through its network's contract, `sliding_window`, and back onto its own voxels.

    Args:
        network: in evaluation mode.
        image: with the contract's channels.
        contract: what the network reads.
        options: of `sliding_window`.

    Returns:
        What ``decide`` says, ``[D, H, W]`` or ``[J, D, H, W]`` of ``image.size``.
    """
    placed = contract.place(image)
    limits = contract.limits(placed)
    found = sliding_window(
        network,
        torch.from_numpy(placed),
        roi=contract.roi,
        prepare=lambda part: contract.normalise(part, limits),
        **options,  # type: ignore[arg-type]  # checked by the callee, not here
    )
    return contract.restore(found, image)


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
    """The scores of the slices that windows reach now; the sweep axis comes first.

    Args:
        size: of the volume.  roi: of a window within it.
        decide: what is kept of the scores of a finished slice.
        half: keep scores in float16.
    """

    def __init__(self, size: list[int], roi: list[int], decide: Decide, half: bool) -> None:
        self.size, self.roi, self.decide = size, roi, decide
        self.dtype = torch.float16 if half else torch.float32
        self.first = 0
        self.weight = torch.zeros(roi[0], *size[1:], dtype=self.dtype)
        self.scores: Tensor | None = None
        self.kept: Tensor | None = None

    def add(self, scores: Tensor, weight: Tensor, place: tuple[int, ...], inside: list[slice]) -> None:
        """A window's scores ``[K, *roi]`` at `place` across the sweep axis."""
        if self.scores is None:
            self.scores = torch.zeros(len(scores), self.roi[0], *self.size[1:], dtype=self.dtype)
        box = [slice(start, start + part.stop) for start, part in zip(place, inside[1:], strict=True)]
        self.weight[(slice(None), *box)] += weight
        for total, one in zip(self.scores, scores, strict=True):
            total[(slice(None), *box)].addcmul_(one, weight)

    def advance(self, start: int) -> None:
        """Decide the slices before `start`, and make room for as many."""
        assert self.scores is not None
        count = min(start - self.first, self.roi[0])
        for k in range(count):
            decided = self.decide((self.scores[:, k].float() / self.weight[k].float())[:, None])
            if self.kept is None:
                self.kept = torch.zeros(*decided.shape[:-3], *self.size, dtype=decided.dtype)
            self.kept[..., self.first + k, :, :] = decided[..., 0, :, :]
        for part in (*self.scores, self.weight):
            part[: len(part) - count] = part[count:].clone()
            part[len(part) - count :] = 0
        self.first = start

    def result(self, axes: Sequence[int]) -> np.ndarray:
        """What was decided, with the axes in the volume's order."""
        assert self.kept is not None
        lead = self.kept.ndim - 3
        back = [*range(lead), *(int(axis) + lead for axis in np.argsort(axes))]
        return np.ascontiguousarray(self.kept.permute(back).numpy())


def _starts(size: int, roi: int, overlap: float) -> list[int]:
    """Where windows begin along an axis, the last one moved back to end with the volume."""
    if size <= roi:
        return [0]
    step = max(int(roi * (1 - overlap)), 1)
    return sorted({part[0].start for part in dense_patch_slices((size,), (roi,), (step,))})


def _window(
    volume: Tensor,
    corner: Sequence[int],
    axes: Sequence[int],
    roi: Sequence[int],
    prepare: Callable[[Tensor], Tensor],
) -> Tensor:
    """A window ``[C, *roi]`` in the network's intensities and axes, filled up with 0."""
    box = [slice(0)] * 3
    for axis, start in zip(axes, corner, strict=True):
        box[axis] = slice(start, start + roi[axis])
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
