"""The public names: they exist, are documented, and cost nothing until they are used."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vesalius
from vesalius.cli import main

PARITY = Path(__file__).parent / "parity"


def test_every_public_name_is_there_and_documented():
    for name in vesalius.__all__:
        assert inspect.getdoc(getattr(vesalius, name)), name
    assert set(vesalius.__all__) <= set(dir(vesalius))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        vesalius.nothing_like_it  # noqa: B018 - the access is what is tested


def test_importing_the_library_imports_nothing_heavy():
    code = "import sys, vesalius; print([m for m in ('torch', 'polars', 'monai', 'lightning') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_verify_prints_json_saves_whole_arrays_and_fails_on_a_difference(capsys, tmp_path):
    fixture = PARITY / "mae_lr_schedule.json.gz"
    assert main(["verify", str(fixture), "--save", str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["output"], row["ok"]) for row in rows] == [("lr", True)]
    assert np.load(tmp_path / "out" / "mae_lr_schedule.npz")["lr"].shape == (80, 2)
    stored = dict(np.load(PARITY / "mae_lr_schedule.npz"))
    np.savez(tmp_path / "mae_lr_schedule.npz", **{**stored, "out/lr/value": 1.01 * stored["out/lr/value"]})
    shutil.copy(fixture, tmp_path)
    assert main(["verify", str(tmp_path / fixture.name)]) == 1


def test_convert_refuses_another_layout_in_one_line(capsys, tmp_path):
    torch.save({"some.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    assert main(["convert", "usfm", str(tmp_path / "other.pth"), "--out", str(tmp_path / "new.safetensors")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "other.pth" in lines[0]
    assert not (tmp_path / "new.safetensors").exists()
