"""The one exception a user is meant to see: what is wrong, in which file, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from os import PathLike


class VesaliusError(Exception):
    """An error that the user can act on; the command line prints it as one line and exits with 2.

    Args:
        what: what is wrong, without a full stop.
        path: the file or folder it is about.
        remedy: what the user can do.

    >>> print(VesaliusError("file ends inside the pixel data", path="a.dcm", remedy="copy it again"))
    a.dcm: file ends inside the pixel data; copy it again
    """

    def __init__(self, what: str, *, path: str | PathLike[str] | None = None, remedy: str | None = None):
        self.what, self.path, self.remedy = what, path, remedy
        line = f"{path}: {what}" if path is not None else what
        super().__init__(f"{line}; {remedy}" if remedy else line)


class UnreadableImage(VesaliusError):
    """A file that cannot be read as an image; a batch records it and goes on."""


class WeightsError(VesaliusError):
    """A weights file that is unsafe, of another layout, or that does not fit the network."""


class ConfigError(VesaliusError):
    """An unknown name, key or value."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown `name`: the closest known one, and all of them.

    >>> nearest("usmf", ["usfm", "deblurring"])
    "did you mean 'usfm'? known: deblurring, usfm"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = f"known: {', '.join(names)}"
    return f"did you mean {close[0]!r}? {listed}" if close else listed
