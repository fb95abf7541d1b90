"""Each paper's central claim as an experiment that runs in minutes on a CPU, and that can fail."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from vesalius.errors import ConfigError, nearest

CLAIMS = {
    "usfm": "vesalius.claims.usfm",
    "deblurring": "vesalius.claims.deblurring",
    "ept": "vesalius.claims.ept",
    "brainsegfounder": "vesalius.claims.brainsegfounder",
    "universal": "vesalius.claims.universal",
    "sam3d": "vesalius.claims.sam3d",
    "masam": "vesalius.claims.masam",
    "atlas": "vesalius.claims.atlas",
}


def claim(
    system: str,
    *,
    out: str | Path,
    seeds: int = 3,
    data: str | Path | None = None,
    workers: int = 2,
    steps: int | None = None,
) -> dict[str, Any]:
    """Run a system's claim with every control arm, judge it and leave a page.

    An arm that was run is not run again: an interrupted claim goes on where it stopped, and more seeds can be added.

    Args:
        system: a name of `CLAIMS`.
        out: folder for ``results.json``, ``report.html``, the figures and one folder a seed.
        seeds: how many, counted from 0. A verdict needs three.
        data: a table of real images; without it, phantoms of 32 pixels. Only the claims of usfm and deblurring take
            one; the others have images of their own.
        workers: processes, one thread each.
        steps: of pre-training, instead of the claim's own. The claims need theirs: with a third of the steps nothing is
            learned that a random network does not read as well.

    Returns:
        What ``results.json`` holds: ``summary`` (arm -> metric -> values, mean, sd), ``verdicts``, ``setup`` and more.

    Raises:
        ConfigError: there is no such claim.
        VesaliusError: `out` holds a claim run with another set-up, or the table lacks what is needed.

    It takes minutes; a name that is not known is told at once:

    >>> claim("usmf", out="claims/usfm")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    vesalius.errors.ConfigError: unknown claim 'usmf'; did you mean 'usfm'? known: atlas, ...
    """
    if system not in CLAIMS:
        raise ConfigError(f"unknown claim {system!r}", remedy=nearest(system, CLAIMS))
    if seeds < 1 or workers < 1 or (steps is not None and steps < 1):
        raise ConfigError(f"seeds = {seeds}, workers = {workers}, steps = {steps}", remedy="use numbers from 1")
    # Imported here, because torch and matplotlib are not needed to list what there is.
    from rich.console import Console

    from vesalius.claims.page import show
    from vesalius.claims.runner import run

    module = import_module(CLAIMS[system])
    budget = module.BUDGET
    if data is not None:
        budget = budget.for_table()
    if steps is not None:
        budget = budget.with_steps(steps)
    results = run(system, module, Path(out), seeds=seeds, data=data, workers=workers, budget=budget)
    show(results, Console())
    print(f"written: {Path(out) / 'report.html'}")
    return results
