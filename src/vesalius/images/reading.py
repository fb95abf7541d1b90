"""What the readers share: the header they return, one kind of error, silence, and a bound on lying headers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vesalius.errors import UnreadableImage

HARMLESS = 1 << 26
"""Bytes (64 MiB) that any file may claim to hold; above, the claim is held against the file's length."""
LARGEST = 1 << 32
"""Bytes (4 GiB) that no single image may exceed once decoded."""
DEFLATE = 1_100
"""Bytes that one compressed byte can stand for: deflate's limit is 1,032."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself without its pixels being decoded.

    Args:
        frames: how many frames the file holds: pages of a TIFF, frames of a DICOM, slices along the last axis of a
            3-D NIfTI (which can also be read whole), volumes of a 4-D one.
        size: (H, W), or (D, H, W) of a NIfTI volume.
        channels: as in `Image`.
        spacing: mm along `size`, None where the file does not say.
        modality: DICOM's code, None elsewhere.
        tags: as in `Image`.
        volumes: how many a 4-D NIfTI holds; 1 elsewhere.
    """

    frames: int
    size: tuple[int, ...]
    channels: tuple[str, ...]
    spacing: tuple[float, ...] | None = None
    modality: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    volumes: int = 1


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings from the decoders: what matters about a file is in the `Image` or in the error."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global", "highdicom")]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into one `UnreadableImage` that names it.

    The decoders (pydicom and its plugins, Pillow, nibabel) raise about twenty kinds of exception between them, and
    none documents all of its own; hence the broad clause.
    """
    try:
        if not path.exists():
            raise UnreadableImage("does not exist", path=path, remedy="check the path")
        if not path.is_file():
            raise UnreadableImage("is not a file", path=path, remedy="give an image file")
        if path.stat().st_size == 0:
            raise UnreadableImage("is empty", path=path, remedy="copy it again")
        with quiet():
            yield
    except UnreadableImage:
        raise
    except PermissionError as error:
        raise UnreadableImage("may not be read", path=path, remedy="change its permissions") from error
    except MemoryError as error:
        raise UnreadableImage("does not fit into memory", path=path, remedy="crop or tile it") from error
    except BaseException as error:
        # pylibjpeg-rle is written in Rust, whose panics arrive as a BaseException; a KeyboardInterrupt must pass.
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(
            f"cannot be read ({reason[:240]})", path=path, remedy="it may be damaged: copy or export it again"
        ) from error


def check_claim(path: Path, claimed: int, *, stored: int, ratio: int) -> None:
    """Refuse a header whose pixels cannot be in the file, before anything is allocated for them.

    Args:
        path: the file, for the error.
        claimed: bytes of the decoded pixels that the header announces.
        stored: bytes in the file.
        ratio: decoded bytes that one stored byte can stand for; 1 where nothing is compressed.

    Raises:
        UnreadableImage: more than `LARGEST`; or more than `HARMLESS` (than anything, for ratio 1) and more than the
            stored bytes can hold.
    """
    if claimed > LARGEST:
        raise UnreadableImage(f"decodes to {claimed / 2**30:.1f} GiB", path=path, remedy="crop, tile or resample it")
    if claimed > stored * ratio and (ratio == 1 or claimed > HARMLESS):
        raise UnreadableImage(
            f"announces {claimed:,} bytes of pixels, more than its {stored:,} bytes can hold",
            path=path,
            remedy="it is truncated or its header is damaged: copy it again",
        )


def choose_frame(path: Path, frame: int | None, frames: int) -> int:
    """The frame to read, 0 for a file that holds one.

    Raises:
        UnreadableImage: none was chosen of several, or it does not exist.
    """
    if frame is None:
        if frames == 1:
            return 0
        raise UnreadableImage(
            f"holds {frames} frames (0 to {frames - 1})", path=path, remedy="choose one with frame=, or index the file"
        )
    if not 0 <= frame < frames:
        raise UnreadableImage(f"has no frame {frame}", path=path, remedy=f"choose one of 0 to {frames - 1}")
    return int(frame)


def native(array: np.ndarray) -> np.ndarray:
    """`array` contiguous, writable and in the machine's byte order, as PyTorch needs it."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return array if array.flags.writeable else array.copy()
