"""The run folder: where everything that a training leaves behind lies, and what may be continued.

RUN/config.yaml           what was asked for (written first)
RUN/environment.json      versions, machine, code version
RUN/metrics.csv           one row per logged step
RUN/tensorboard/          the same for TensorBoard
RUN/checkpoints/          last.ckpt (all that --resume needs) and best.ckpt (by validation)
RUN/weights.safetensors   the result, with card.json and card.md (written last: a run that has them is finished)
RUN/results.json          scores (evaluate)
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from vesalius.errors import VesaliusError
from vesalius.files import output_folder, write_text

# What may differ between a run and its continuation, because it does not change the weights.
FREE = frozenset({"workers", "save_every", "save_minutes", "log_every", "checkpointing", "data"})
PACKAGES = ("vesalius", "torch", "lightning", "timm", "numpy", "torchvision", "pydicom", "polars")


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run.

    >>> RunFolder(Path("runs/usfm")).last.as_posix()
    'runs/usfm/checkpoints/last.ckpt'
    """

    path: Path

    @property
    def config(self) -> Path:
        """What was asked for."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def seen(self) -> Path:
        """Whom it learned from."""
        return self.path / "seen.json"

    @property
    def metrics(self) -> Path:
        """The training curve."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def last(self) -> Path:
        """The checkpoint that a resumed run starts from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation score."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def weights(self) -> Path:
        """The result."""
        return self.path / "weights.safetensors"

    @property
    def results(self) -> Path:
        """Scores."""
        return self.path / "results.json"

    def read_config(self) -> dict[str, Any]:
        """The configuration that the run was started with.

        Raises:
            VesaliusError: the folder holds no run.
        """
        if not self.config.is_file():
            raise VesaliusError("no run here (config.yaml is missing)", path=self.path, remedy="give a run's folder")
        try:
            return dict(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise VesaliusError("is not a configuration", path=self.config, remedy="restore or delete it") from error


def open_run(path: str | Path, config: Mapping[str, Any], *, resume: bool = False) -> RunFolder:
    """Make the folder of a new run, or check that an existing one can be continued with this configuration.

    Args:
        path: the folder.
        config: plain values (YAML); everything that determines the result.
        resume: continue what is there; a folder without a run is started.

    Raises:
        VesaliusError: the folder holds another run, or one that was not asked to be continued, or may not be written.
    """
    run = RunFolder(Path(path))
    if not is_first_process():  # the first one has checked and made the folder
        return run
    output_folder(run.path)
    plain = json.loads(json.dumps(dict(config)))
    started = run.last.exists() or run.weights.exists()
    if run.config.exists() and (started or resume):
        if not resume:
            state = "a finished run" if run.weights.exists() else "an unfinished run"
            raise VesaliusError(
                f"holds {state} already", path=run.path, remedy="continue it with --resume or choose another --out"
            )
        difference = _first_difference(run.read_config(), plain)
        if difference:
            raise VesaliusError(
                f"was started with another configuration: {difference}",
                path=run.path,
                remedy="resume with the same options or choose another --out",
            )
        for stray in run.last.parent.glob(".*.ckpt"):  # what a kill in the middle of a write leaves
            stray.unlink()
    elif run.weights.exists():
        raise VesaliusError("holds weights, not a run", path=run.path, remedy="choose another --out")
    else:
        write_text(run.config, yaml.safe_dump(plain, sort_keys=False))
        write_text(run.environment, json.dumps(environment(), indent=2) + "\n")
    return run


def is_first_process() -> bool:
    """Whether this process writes: the only one, or the first of a distributed run."""
    return not getattr(rank_zero_only, "rank", 0)


def environment() -> dict[str, Any]:
    """Versions, machine and code version: what a number depends on beside its configuration."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": code_version(),
    }


def code_version() -> str:
    """The package's version, with the commit where it runs from a checkout (``+`` = changed since).

    >>> code_version().split(" ")[0] == _version("vesalius")
    True
    """
    version = _version("vesalius")
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return version
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return version
    return f"{version} {commit.stdout.strip()}{'+' if changed.stdout.strip() else ''}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source" if package == "vesalius" else "not installed"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _first_difference(old: Any, new: Any, key: str = "") -> str:
    """``key: old -> new`` of the first value that differs, '' where nothing does."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in FREE:
                inner = f"{key}.{name}" if key else str(name)
                if found := _first_difference(old.get(name), new.get(name), inner):
                    return found
        return ""
    return "" if old == new else f"{key} was {old!r}, now {new!r}"
