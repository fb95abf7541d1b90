"""Every kept fixture, recomputed through the ordinary loader, and variations of them that were never stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vesalius.errors import ConfigError
from vesalius.evaluation.parity import FAMILIES
from vesalius.evaluation.verify import compute, family, verify
from vesalius.published.fixture import Fixture

FILES = sorted(Path(__file__).parent.glob("*.json.gz"))
STRICTER = {"ept_a": 1e-5, "abdomenatlas_attention_single": 1e-6}
"""Fixtures whose allowed error would hide something: that the file's prompts are used (which change the output by
5e-4), or a grey level in a map."""


def _parameters(path: Path) -> int:
    return sum(int(np.prod(shape)) for shape, _ in Fixture.read(path).keys.values())


def _marked(path: Path):
    voxels = max((image.size for image in Fixture.read(path).inputs.values() if image.ndim == 5), default=0)
    marks = [pytest.mark.large] if _parameters(path) > 10_000_000 or voxels > 200_000 else []
    return pytest.param(path, marks=marks, id=path.name.removesuffix(".json.gz"))


@pytest.mark.parametrize("path", [_marked(path) for path in FILES])
def test_published_outputs_are_reproduced(path, tmp_path):
    rows = verify([path], save=tmp_path)
    fixture = Fixture.read(path)
    assert {row.output for row in rows} == set(fixture.outputs)
    assert not [row for row in rows if not row.ok or row.error > STRICTER.get(fixture.name, np.inf)]
    with np.load(tmp_path / f"{fixture.name}.npz") as saved:
        for name, kept in fixture.outputs.items():
            assert saved[name].shape == tuple(kept.get("shape", kept["value"].shape))


def test_every_adapter_has_a_kept_fixture():
    """Families that differ only in size or in their file's layout share one."""
    kept = {family(path.name.removesuffix(".json.gz")) for path in FILES}
    assert {FAMILIES[name] for name in kept} == set(FAMILIES.values())


def test_a_wrong_number_fails():
    path = next(path for path in FILES if path.name.startswith("mae_lr_schedule"))
    fixture = Fixture.read(path)
    fixture = replace(fixture, config={**fixture.config, "warmup_epochs": 6})
    assert fixture.error("lr", compute(fixture)["lr"]) > 1e-3


def test_rings_follow_the_fixture():
    """A first ring with zeros, ones and twos, as the published code makes where CenterProtect exceeds BaseBW."""
    path = next(path for path in FILES if path.name.startswith("usfm_frequency_mask"))
    fixture = Fixture.read(path)
    config = {**fixture.config, "CenterProtect": 9, "image_size": 96, "chosen_rings": [0, 1]}
    image = np.random.default_rng(0).random((3, 96, 96), dtype=np.float32)
    outputs = compute(replace(fixture, config=config, inputs={"image": image}))
    assert set(np.unique(outputs["rings"][0])) == {0, 1, 2}
    assert outputs["rings"].shape[1:] == (96, 96)
    assert outputs["filtered"].shape == (3, 96, 96)


def test_a_fixture_that_cannot_be_computed_does_not_stop_the_rest(tmp_path):
    (tmp_path / "usfm_cls_z.json.gz").write_bytes(b"not gzip")
    good = next(path for path in FILES if path.name.startswith("mae_lr_schedule"))
    bad, row = verify([tmp_path / "usfm_cls_z.json.gz", good])
    assert not bad.ok
    assert "not a parity fixture" in bad.note
    assert row.ok


def test_unknown_family_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'usfm_cls'"):
        family("usfm_clas_a")
