"""A progress bar for what turns out to take long."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds without a bar."""


def track(items: Iterable[T], total: int, text: str) -> Iterator[T]:
    """The same items; on standard error a bar with the time left, once two seconds have passed.

    >>> list(track([1, 2, 3], 3, "counting"))
    [1, 2, 3]
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(text, total=total)
    began = time.monotonic()
    try:
        for item in items:
            yield item
            progress.advance(task)
            if not progress.live.is_started and time.monotonic() - began > PATIENCE:
                progress.start()
    finally:
        if progress.live.is_started:
            progress.stop()
