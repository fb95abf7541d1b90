"""Weights files are read without running them, and what a network does not get is an error."""

from __future__ import annotations

import argparse
import os
import pickle

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from vesalius.errors import WeightsError
from vesalius.published.checkpoint import fill, read_state, safe_torch_load


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch '{self.victim}'",)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch.save", "bare pickle"])
def test_a_malicious_file_is_refused_and_does_not_run(tmp_path, zipped):
    victim, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"model": {"weight": torch.ones(2)}, "args": Payload(victim)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content["args"], protocol=2))
    with pytest.raises(WeightsError, match=r"evil\.pth: refused: it holds the Python object \w+\.system") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Payload(victim)))  # the payload itself works, so the test can fail
    assert victim.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(nn.DataParallel(nn.Linear(2, 2)), tmp_path / "module.pth")
    with pytest.raises(WeightsError, match="DataParallel"):
        safe_torch_load(tmp_path / "module.pth")


def test_training_arguments_are_let_through(tmp_path):
    state = {"module.a": torch.ones(2), "module.b": torch.zeros(1)}
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1, name="mae")}, tmp_path / "old.pth")
    assert set(read_state(tmp_path / "old.pth")) == {"a", "b"}


@pytest.mark.parametrize("wrapper", [(), ("model",), ("state_dict",), ("module",), ("state_dict", "model")])
def test_wrappers_are_opened(tmp_path, wrapper):
    content: dict = {"a": torch.ones(2)}
    for name in wrapper:
        content = {name: content, "epoch": 1}
    torch.save(content, tmp_path / "w.pth")
    assert torch.equal(read_state(tmp_path / "w.pth")["a"], torch.ones(2))


def test_safetensors_are_read(tmp_path):
    save_file({"module.a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert list(read_state(tmp_path / "w.safetensors")) == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, "no such weights file"),
        ("empty.pth", b"", "cannot be read|is empty"),
        ("text.pth", b"<html>quota exceeded</html>", "refused|cannot be read"),
        ("text.safetensors", b"<html>quota exceeded</html>", "cannot be read as safetensors"),
    ],
)
def test_broken_files_say_so(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_state(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_says_so(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read as a torch file"):
        read_state(tmp_path / "w.pth")


def test_a_file_without_tensors_says_so(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no tensors"):
        read_state(tmp_path / "w.pth")


def test_the_report_counts_and_complains():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    state = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2), "1.weight": torch.ones(1, 2)}
    report = fill(module, state, start={"1.bias": torch.zeros(1)}, dropped={"mask_token": "not used"})
    assert (len(report.matched), list(report.missing), report.share) == (3, ["1.bias"], 10 / 11)
    assert module[0].weight.requires_grad
    with pytest.raises(WeightsError, match=r"fills only 90\.91% of the network; missing 1 tensors \(1\.bias\)"):
        report.check()
    with pytest.raises(WeightsError, match=r"1 of its tensors are used by nothing \(2\.weight\)"):
        fill(module, {**state, "1.bias": torch.ones(1), "2.weight": torch.ones(1)}).check()
    with pytest.raises(WeightsError, match=r"0\.bias is \[3\], the network's \[2\]"):
        fill(module, {**state, "0.bias": torch.ones(3)})
    with pytest.raises(WeightsError, match="fills only"):
        fill(module, state)
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - the console outlives no test
    console.print(report)
    assert "dropped: not used" in console.export_text()
