"""How much memory there is, asked before it is needed: a process that is killed for memory leaves no message."""

from __future__ import annotations

import os
from pathlib import Path

from vesalius.errors import VesaliusError

SPARE = 0.9
"""Part of the free memory that one volume may take."""
_CGROUP = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int:
    """Bytes that can still be allocated: the system's, or what a container's limit leaves."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: all of it
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, usage in _CGROUP:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(usage).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return max(free, 0)


def check_memory(needed: int, path: str | Path | None = None) -> None:
    """Pass, if `needed` bytes can be had.

    Raises:
        VesaliusError: they cannot.
    """
    free = available_memory()
    if needed > SPARE * free:
        raise VesaliusError(
            f"needs {gib(needed)} of memory, and {gib(free)} are free",
            path=path,
            remedy="use fewer workers, a coarser spacing or a larger machine",
        )


def gib(count: float) -> str:
    """Bytes as GiB, or MiB where that is less than a tenth.

    >>> gib(3 * 2**30), gib(2**20)
    ('3.0 GiB', '1.0 MiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
