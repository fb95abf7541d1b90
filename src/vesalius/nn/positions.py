"""Where a patch is: fixed, learned and relative positions, and how each is carried to another grid."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

CLS_ROWS = 3  # rows at a relative table's end: cls -> patch, patch -> cls, cls -> cls


def sincos_2d(dim: int, rows: int, columns: int, *, cls: bool = False) -> Tensor:
    """Fixed sine-cosine positions ``[cls + rows * columns, dim]``, float64 (He 2022, MAE).

    The first half of the channels comes from the column, the second from the row; each half is sine then cosine
    of position * 10000^(-k / (dim / 4)). The class token's row is zero.

    >>> sincos_2d(8, 2, 3, cls=True).shape
    torch.Size([7, 8])
    """
    if dim % 4:
        raise ValueError(f"dim = {dim} is not a multiple of 4")
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    angles = [axis.reshape(-1, 1) * omega for axis in (x, y)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([table.new_zeros(1, dim), table]) if cls else table


def resize_absolute(table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """``[1, extra + source patches, D]`` -> ``[1, extra + target patches, D]``.

    Bicubic, align_corners False, no antialiasing, as both MAE and the deblurring code do; extra (class) rows in front
    are copied.
    """
    if source == target:
        return table
    extra = table.shape[1] - source[0] * source[1]
    head, patches = table[:, :extra], table[:, extra:]
    maps = patches.reshape(1, *source, -1).permute(0, 3, 1, 2).float()
    maps = F.interpolate(maps, size=target, mode="bicubic", align_corners=False)
    return torch.cat([head, maps.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def relative_index(rows: int, columns: int, *, cls: bool = True) -> Tensor:
    """Row of the relative table for each (query, key) pair, ``[T, T]`` with T = cls + rows * columns.

    The offset is coordinate(query) - coordinate(key); index = (dy + rows - 1) * (2 columns - 1) + dx + columns - 1,
    and the class token's three rows come last (BEiT).
    """
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + rows - 1
    dx = x[:, None] - x[None, :] + columns - 1
    patches = dy * (2 * columns - 1) + dx
    if not cls:
        return patches
    count = (2 * rows - 1) * (2 * columns - 1)
    index = patches.new_empty(len(y) + 1, len(y) + 1)
    index[1:, 1:] = patches
    index[0, 1:], index[1:, 0], index[0, 0] = count, count + 1, count + 2
    return index


def _geometric_offsets(source: int, target: int) -> np.ndarray:
    """Where a source table's ``2 * source - 1`` offsets come to lie among the target's: dense near zero.

    The steps grow as 1, q, q^2, ...; q in (1.01, 1.5) is bisected until they span the target (BEiT).
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q ** (source - 1)) / (1 - q) > target - 1:
            high = q
        else:
            low = q
    side = np.cumsum(q ** np.arange(source - 1))
    return np.concatenate([-side[::-1], [0.0], side])


def resize_relative(
    table: Tensor, source: tuple[int, int], target: tuple[int, int], *, as_published: bool = False
) -> Tensor:
    """A relative table ``[(2r-1)(2c-1) + extra, heads]`` carried from one patch grid to another.

    Cubic tensor spline over geometrically spaced source offsets; the extra (class) rows are copied. USFM's own
    loader returns it transposed (row and column offsets swapped), and NaN on the outermost offsets where the
    last source offset ends 1e-6 short of the target; here it is upright and the targets are clamped.

    Args:
        as_published: give USFM's transposed table, NaN and all.
    """
    if source == target:
        return table
    count = (2 * source[0] - 1) * (2 * source[1] - 1)
    body, extra = table[:count], table[count:]
    offsets = [_geometric_offsets(s, t) for s, t in zip(source, target, strict=True)]
    wanted = [np.arange(-(t - 1), t, dtype=np.float64) for t in target]
    if not as_published:
        wanted = [np.clip(w, o[0], o[-1]) for w, o in zip(wanted, offsets, strict=True)]
    values = body.detach().double().cpu().numpy().reshape(2 * source[0] - 1, 2 * source[1] - 1, -1)
    spline = RegularGridInterpolator(offsets, values, method="cubic", bounds_error=False, fill_value=np.nan)
    resized = spline(np.stack(np.meshgrid(*wanted, indexing="ij"), axis=-1))
    if as_published:
        resized = resized.transpose(1, 0, 2)
    new = torch.from_numpy(np.ascontiguousarray(resized.reshape(-1, table.shape[1]))).to(table)
    return torch.cat([new, extra])
