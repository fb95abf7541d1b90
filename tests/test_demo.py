"""The demo, very small: it ends with a page, and what is done is not done again."""

from __future__ import annotations

import json
import re

from vesalius.demo import ARMS, TASKS, demo


def test_demo_leaves_a_page_and_goes_on_where_it_stopped(tmp_path, capsys):
    options = {"out": str(tmp_path / "demo"), "n": 40, "seeds": 1, "pretrain_steps": 2, "adapt_steps": 2, "workers": 1}
    compared = {"usfm", "mae", "scratch"}
    assert demo(**options) == 0
    page = (tmp_path / "demo" / "index.html").read_text()
    for words in (*(ARMS[arm] for arm in compared), *TASKS, "Segmentation", "organs are unequal".capitalize()):
        assert words in page
    assert not re.findall(r'(?:src|href)="https?:', page)
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert set(results["scores"]) == set(TASKS) and set(results["scores"]["segmentation"]["dice"]) == compared
    assert (tmp_path / "demo" / "runs" / "usfm-seed0" / "report.html").exists()

    weights = sorted((tmp_path / "demo" / "runs").glob("*/weights.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    assert len(weights) == 2 + 3 * len(TASKS)
    assert demo(**options) == 0
    adapted = [i for i, path in enumerate(weights) if path.parent.name.split("-")[0] in TASKS]
    assert [before[i] for i in adapted] == [weights[i].stat().st_mtime_ns for i in adapted]
