"""Methods on volumes, compared by ordinary runs: what is done is kept, and the tables come from the cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vesalius.compare import compare_methods
from vesalius.compare.volumes import read_volume_arms
from vesalius.data.index import index
from vesalius.data.phantoms.torso import ct
from vesalius.errors import ConfigError, VesaliusError


def test_two_methods_on_phantoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ct(tmp_path / "ct", n=4, size=(12, 24, 24), spacing=(24, 16, 16))
    index(tmp_path / "ct", tmp_path / "ct.parquet", volumes=True, val=0.25, test=0.25)
    arms = ["transunet:preset=tiny:frame=[32,32]:images=2:network.depth=1", "lora_sam:frame=[32,32]:slices=3:images=1"]
    asked = {"data": tmp_path / "ct.parquet", "out": tmp_path / "out", "base": "random:sam_tiny", "classes": ["liver"]}
    asked |= {"shots": ["all"], "seeds": 1, "steps": 2}
    results = compare_methods(**asked, methods=arms, lrs=["1e-3,2e-3"])
    (table,) = results["tables"]
    assert [row["arm"] for row in table["rows"]] == arms
    first, second = results["cells"]
    assert {trial["lr"] for trial in first["trials"]} == {1e-3, 2e-3}
    assert {*first["test"]} == {*second["test"]} == {"dice", "nsd", "hd95"}
    run = Path(next(cell for cell in results["cells"] if cell["method"] == "lora_sam")["trials"][0]["run"])
    adapters = json.loads((run / "card.json").read_text())["architecture"]["config"]["adapters"]
    assert (adapters["width"], adapters["rank"], adapters["lora"]) == (0, 0, 4)
    assert "lora_sam" in (tmp_path / "out" / "report.html").read_text()
    assert "| transunet" in (tmp_path / "out" / "table.md").read_text()
    monkeypatch.setattr("vesalius.compare.volumes.evaluate", None)  # nothing is trained or scored again
    again = compare_methods(**asked, methods=arms, lrs=["1e-3,2e-3"])
    assert again["tables"] == results["tables"]
    json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    with pytest.raises(VesaliusError, match="holds a comparison with lrs"):
        compare_methods(**asked, methods=arms, lrs=["1e-3"])


def test_methods_are_read_and_refused():
    (arm,) = read_volume_arms(["dynunet:preset=paper:flip=0:crop=[32]"], ["liver"])
    assert (arm.method, arm.settings) == ("dynunet", {"preset": "paper", "flip": 0, "crop": [32]})
    for words, match in (
        (["lora"], "did you mean 'lora_sam'"),
        (["masam,masam"], "named twice"),
        (["masam:slices"], "sets nothing"),
    ):
        with pytest.raises(ConfigError, match=match):
            read_volume_arms(words, ["liver"])
    with pytest.raises(ConfigError, match="name the one"):
        read_volume_arms(["sam3d"], ["liver", "spleen"])
