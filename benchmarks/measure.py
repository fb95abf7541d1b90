"""How the benchmarks measure: two sides interleaved in one process, medians, and peak memory in fresh processes."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        work: what both sides did.  peer: whom ours stands beside.
        unit: of the two medians: s, ms, images/s (or patches/s) or MB.
        ours, theirs: medians over `repeats`.
    """

    work: str
    peer: str
    unit: str
    ours: float
    theirs: float
    repeats: int

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours / self.theirs

    @property
    def better(self) -> str:
        """Which way the ratio should fall."""
        return "higher" if self.unit.endswith("/s") else "lower"

    def line(self) -> str:
        """A row of the Markdown table of `table`."""
        return (
            f"| {self.work} | {self.peer} | {self.ours:.4g} | {self.theirs:.4g} | {self.unit} "
            f"| {self.ratio:.2f} ({self.better} is better) | {self.repeats} |"
        )


def table(rows: list[Row]) -> str:
    """A Markdown table."""
    head = ["| work | peer | ours | peer's | unit | ours / peer's | repeats |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*head, *(row.line() for row in rows)])


def interleaved(sides: dict[str, Callable[[], object]], *, repeats: int, warmup: int = 2) -> dict[str, float]:
    """Median seconds of each side; they take turns, and who begins alternates, so that a busy moment hits both."""
    names = list(sides)
    for name in names * warmup:
        sides[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats):
            for name in names if turn % 2 == 0 else reversed(names):
                start = time.perf_counter()
                sides[name]()
                times[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def compare_steps(
    file: str,
    description: str,
    sizes: Mapping[str, tuple[Any, int]],
    sides: Callable[[Any, int], dict[str, Callable[[], Callable[[], object]]]],
    *,
    pairs: Sequence[tuple[str, str, str]],
) -> None:
    """The command line of a benchmark of training steps: time the sides in turns, take their memory apart.

    Args:
        file: the benchmark's own path, run again for each side's memory (``--only``).
        description: of its help.
        sizes: name -> configuration and batch.
        sides: (configuration, batch) -> what builds each side's step.
        pairs: (our side, the other one, what the row calls it).
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=sizes, default="small")
    parser.add_argument("--batch", type=int, help="images a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=dict.fromkeys(name for pair in pairs for name in pair[:2]))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, batch = sizes[options.size]
    batch = options.batch or batch
    build = sides(config, batch)
    if options.only:
        imports = peak_mb()
        run = build[options.only]()
        for _ in range(3):
            run()
        print(json.dumps([{"mb": peak_mb() - imports}]))
        return
    seconds = interleaved({name: make() for name, make in build.items()}, repeats=options.repeats)
    words = ("--size", options.size, "--batch", str(batch), "--threads", str(options.threads))
    memory = {name: fresh(file, *words, "--only", name)[0]["mb"] for name in build}
    rows = []
    for name, peer, label in pairs:
        work = f"{name} step, batch {batch}"
        rows.append(Row(work, label, "ms", 1e3 * seconds[name], 1e3 * seconds[peer], options.repeats))
        rows.append(Row(f"{work}: peak memory", label, "MB", memory[name], memory[peer], 1))
    show(rows, as_json=options.json)


def peak_mb() -> float:
    """The most memory that this process has had resident, in MB (10^6 bytes).

    Linux's VmHWM begins at zero with the program; getrusage's figure, taken elsewhere, may include the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def fresh(script: str | Path, *words: str) -> list[dict[str, float | str | int]]:
    """What `script` prints with ``--json`` in a process of its own."""
    command = [sys.executable, str(script), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def show(rows: list[Row], *, as_json: bool) -> None:
    """Print the rows, for people or for `fresh`."""
    print(json.dumps([asdict(row) for row in rows]) if as_json else table(rows))


def machine() -> list[str]:
    """The machine and the versions, as Markdown list items."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    packages = ("torch", "timm", "lightly", "lightning", "monai", "peft", "pillow", "pydicom", "numpy")
    return [
        f"- Processor: {model}, {os.cpu_count()} cores; {platform.system()} {platform.machine()}",
        f"- Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages),
        f"- OMP_NUM_THREADS = {os.environ.get('OMP_NUM_THREADS', 'not set')}",
    ]


def load() -> str:
    """How busy the machine is: its load average over a minute, where the system has one."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
