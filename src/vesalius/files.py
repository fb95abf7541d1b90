"""Files that are either whole or not there: atomic writes, checksums, folders that can be written."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vesalius.errors import VesaliusError


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved over it when the block ends well and removed when it does not.

    The suffix is kept, so that writers which choose a format by it work.

    Raises:
        VesaliusError: the folder cannot be written, or the disk is full; `path` is then as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix="-" + path.name)
        os.close(handle)
    except OSError as error:
        raise VesaliusError(
            f"cannot be written ({error.strerror})", path=path, remedy="choose a folder that you may write to"
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise VesaliusError(
            f"writing failed ({error.strerror or error}); the earlier file, if any, is untouched",
            path=path,
            remedy="free some space or choose another folder",
        ) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def output_folder(path: str | Path) -> Path:
    """`path` as an existing folder that can be written.

    Raises:
        VesaliusError: it is a file, or may not be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise VesaliusError(
            f"output folder cannot be written ({error.strerror})", path=path, remedy="choose another --out"
        ) from error
    return path
