"""Parity fixtures: a published checkpoint described by its key names, and what it computes, kept as small files.

A fixture is ``NAME.json.gz`` (key names, shapes, inputs, configuration) and ``NAME.npz`` (arrays) beside it. Weights
and inputs follow fixed rules (`weight_rule`, `input_rule`), so that a 300 MB checkpoint costs some kilobytes.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vesalius.errors import WeightsError

LOOKUPS = ("embed", "token", "prompt", "position")


def weight_rule(name: str, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """The array that a checkpoint key is filled with, a pure function of its name and shape.

    >>> bool((weight_rule("norm.running_var", (3,)) >= 1).all())
    True
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return (1 + 0.1 * rng.random(shape)).astype(dtype)
    if len(shape) >= 2:
        lookup = "patch_embed" not in name and any(part in name for part in LOOKUPS)
        std = 0.02 if lookup else int(np.prod(shape[1:])) ** -0.5
        return (std * rng.standard_normal(shape)).astype(dtype)
    offset = 1 if name.endswith("weight") else 0
    return np.asarray(offset + 0.1 * rng.standard_normal(shape), dtype=dtype)


def input_rule(shape: tuple[int, ...], seed: int = 0, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """An input of the given shape, float32 from `low` to `high`: one sine along every axis, plus noise."""
    rng = np.random.default_rng(seed)
    waves = np.zeros(())
    for axis, n in enumerate(shape):
        along = [1] * len(shape)
        along[axis] = -1
        waves = waves + np.sin(np.linspace(0, 6.0 + axis, n)).reshape(along)
    x = waves / max(len(shape), 1) + 0.3 * rng.standard_normal(shape)
    x = (x - x.min()) / (x.max() - x.min())
    return (low + (high - low) * x).astype("float32")


def _tolerance(meta: dict[str, Any]) -> float:
    """Relative; statistics of draws say in words how close another draw must be.

    >>> _tolerance({}), _tolerance({"call": "the share of voxels. Compare within ~5 percent"})
    (0.0001, 0.05)
    """
    loose = re.search(r"within ~(\d+) percent", meta.get("call", ""))
    return float(meta.get("tolerance", float(loose[1]) / 100 if loose else 1e-4))


@dataclass(frozen=True)
class Fixture:
    """One fixture.

    Args:
        name: as its file.  config: the published constructor's arguments.  tolerance: relative.
        keys: key -> [shape, dtype] of the published file; `wrapper` and `prefix` say how it holds them.
        inputs: name -> array.  outputs: name -> {"value"} or {"shape", "index", "value"}.  integers: key -> array.
    """

    name: str
    config: dict[str, Any]
    tolerance: float
    meta: dict[str, Any]
    keys: dict[str, tuple[list[int], str]]
    wrapper: str
    prefix: str
    inputs: dict[str, np.ndarray]
    outputs: dict[str, dict[str, np.ndarray]]
    integers: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: str | Path) -> Fixture:
        """Read ``NAME.json.gz`` and the ``NAME.npz`` beside it.

        Raises:
            WeightsError: one of the two is missing or is not a fixture.
        """
        path = Path(path)
        try:
            info = json.loads(gzip.decompress(path.read_bytes()))
            with np.load(path.with_name(path.name.removesuffix(".json.gz") + ".npz"), allow_pickle=False) as file:
                arrays = dict(file)
            inputs = {
                name: input_rule(tuple(recipe.pop("shape")), **recipe) for name, recipe in info["recipes"].items()
            }
            outputs: dict[str, dict[str, np.ndarray]] = {}
            integers = {}
            for key, array in arrays.items():
                kind, name = key.split("/", 1)
                if kind == "in":
                    inputs[name] = array
                elif kind == "int":
                    integers[name] = array
                elif kind == "out":
                    output, part = name.rsplit("/", 1)
                    outputs.setdefault(output, {})[part] = array
            meta = info["meta"]
            return cls(
                info["name"], meta.get("config", {}), _tolerance(meta), meta,
                info["keys"], info["wrapper"], info["prefix"], inputs, outputs, integers,
            )  # fmt: skip
        except (OSError, KeyError, TypeError, ValueError, EOFError, zlib.error) as error:
            raise WeightsError(
                f"not a parity fixture ({error})",
                path=path,
                remedy="give NAME.json.gz with NAME.npz in the same folder",
            ) from error

    def checkpoint(self) -> dict[str, Any]:
        """The object that the published file holds; integer buffers without stored values are left out."""
        state = {}
        for key, (shape, dtype) in self.keys.items():
            kind = getattr(torch, dtype)
            if key in self.integers:
                state[self.prefix + key] = torch.from_numpy(np.asarray(self.integers[key])).to(kind)
            elif kind.is_floating_point:
                state[self.prefix + key] = torch.from_numpy(weight_rule(key, tuple(shape))).to(kind)
        return {self.wrapper: state} if self.wrapper else state

    def error(self, output: str, actual: np.ndarray) -> float:
        """Relative error over the kept positions; infinite on another shape, or where a number is not finite."""
        kept, actual = self.outputs[output], np.asarray(actual)
        shape = tuple(kept["shape"]) if "shape" in kept else kept["value"].shape
        if actual.shape != shape:
            return float("inf")
        if "shape" in kept:
            actual = actual.reshape(-1)[kept["index"]]
        expected, actual = kept["value"].astype("float64"), actual.astype("float64")
        if not np.array_equal(np.isnan(expected), np.isnan(actual)):
            return float("inf")
        finite = ~np.isnan(expected)
        gap = float(np.linalg.norm((actual - expected)[finite])) / max(float(np.linalg.norm(expected[finite])), 1e-12)
        return gap if np.isfinite(gap) else float("inf")
