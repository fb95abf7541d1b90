"""A run that is killed and resumed, or spread over processes, ends where an unbroken one does."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities import device_parser
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import FSDPStrategy

from vesalius.errors import ConfigError, VesaliusError
from vesalius.training.callbacks import AtomicCheckpoints, read_metrics
from vesalius.training.loop import TrainConfig, _trainer, fit, load_best

sys.path.insert(0, str(Path(__file__).parent))
import toy_volumes
from toy import Points, Toy

CONFIG = {"steps": 24, "batch_size": 4, "save_every": 6, "val_every": 8, "log_every": 3, "accumulate": 2, "ema": 0.9}


def start(out: Path, *options: str, config: dict | None = None, script: str = "toy.py") -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).parent / script), str(out), *options]
    command += ["--config", json.dumps(config or CONFIG)]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == ""


def assert_same(one: Path, other: Path) -> None:
    read = AtomicCheckpoints().load_checkpoint
    for name in ("last", "best"):
        a, b = (read(run / "checkpoints" / f"{name}.ckpt") for run in (one, other))
        assert a["global_step"] == b["global_step"]
        for part in ("state_dict", "current_model_state"):
            assert a[part].keys() == b[part].keys()
            assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    assert read_metrics(one / "metrics.csv") == read_metrics(other / "metrics.csv")


def train(
    out: Path | None, *, train: Points | None = None, plain: bool = False, resume: bool = False, **options
) -> tuple[Toy, dict]:
    torch.manual_seed(0)
    module = Toy(dropout=0.0, norm=False) if plain else Toy()
    config = TrainConfig(**{"steps": 8, "batch_size": 4, "save_every": 4, "accelerator": "cpu", **options})
    return module, fit(module, train or Points(), out, config, val=Points(), resume=resume, progress=False)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(out, **CONFIG)
    return out


def test_killed_between_checkpoints_and_resumed_ends_bit_equal(tmp_path: Path, unbroken: Path):
    out = tmp_path / "run"
    process = start(out, "--delay", "0.01")
    while not (out / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert AtomicCheckpoints().load_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"] < CONFIG["steps"]
    train(out, **CONFIG, resume=True)
    assert_same(out, unbroken)


def test_a_checkpoint_by_the_clock_between_two_rows_of_the_curve_resumes_bit_equal(tmp_path: Path, unbroken: Path):
    out, timed = tmp_path / "run", {**CONFIG, "save_every": 100, "save_minutes": 1e-9}
    process = start(out, "--kill-in-save", "11", config=timed)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert AtomicCheckpoints().load_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"] == 10
    train(out, **timed, resume=True)
    assert_same(out, unbroken)


def test_killed_in_the_middle_of_a_write_resumes_from_the_checkpoint_before(tmp_path: Path, unbroken: Path):
    out = tmp_path / "run"
    process = start(out, "--kill-in-save", "12")
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert AtomicCheckpoints().load_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"] == 6
    train(out, **{**CONFIG, "workers": 1}, resume=True)
    assert_same(out, unbroken)
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_two_processes_see_and_learn_what_one_with_twice_the_batch_does(tmp_path: Path):
    options = {"steps": 8, "log_every": 1, "val_every": 8}
    finish(start(tmp_path, "--plain", config={**options, "batch_size": 4, "devices": 2, "strategy": "ddp"}))
    one, summary = train(None, plain=True, **options, batch_size=8)
    two = AtomicCheckpoints().load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    for key, value in one.state_dict().items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5)
    losses = [
        [row["train/loss"] for row in rows if "train/loss" in row]
        for rows in (summary["history"], read_metrics(tmp_path / "metrics.csv"))
    ]
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_two_processes_give_a_volume_system_the_gradient_of_one_with_twice_the_batch(tmp_path: Path):
    config = {"batch_size": 2, "devices": 2, "strategy": "ddp", "checkpointing": True}
    finish(start(tmp_path / "two.pt", config=config, script="toy_volumes.py"))
    toy_volumes.train(tmp_path / "one.pt", {"batch_size": 4})
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    for name in one:  # although the processes' cases are annotated for different classes
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6 * largest)


def test_fsdp_is_built_where_there_is_a_gpu_and_refused_elsewhere(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="strategy = fsdp without a GPU; use ddp"):
        train(None, strategy="fsdp")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(device_parser, "_get_all_available_gpus", lambda **kinds: [0])
    config = TrainConfig(steps=1, batch_size=1, strategy="fsdp", accelerator="gpu", precision="bf16")
    built = _trainer(config, [], validate=False)
    assert isinstance(built.strategy, FSDPStrategy)
    assert isinstance(built.strategy.checkpoint_io, AtomicCheckpoints)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path):
    train(tmp_path / "run", steps=4)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    good = last.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, hard))  # writes beyond it fail as on a full disk
    try:
        with pytest.raises(VesaliusError, match=r"last\.ckpt: writing failed .* untouched; free some space"):
            AtomicCheckpoints().save_checkpoint({"x": torch.zeros(len(good))}, last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert last.read_bytes() == good
    assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_a_disk_that_fills_up_during_training_ends_it_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace, calls = Path.replace, []

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == "last.ckpt":
            calls.append(target)
            if len(calls) > 1:
                raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(VesaliusError, match="No space left on device"):
        train(tmp_path / "run", steps=12)
    assert AtomicCheckpoints().load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 4
    monkeypatch.undo()
    train(tmp_path / "run", steps=12, resume=True)
    module, _ = train(None, steps=12)
    again = AtomicCheckpoints().load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(again[key], value) for key, value in module.state_dict().items())


def test_a_finished_run_is_kept_and_resuming_it_gives_its_weights(tmp_path: Path):
    first, summary = train(tmp_path / "run", ema=0.5)
    with pytest.raises(VesaliusError, match="continue it with --resume"):
        train(tmp_path / "run", ema=0.5)
    with pytest.raises(VesaliusError, match=r"train\.steps was 8, now 9"):
        train(tmp_path / "run", ema=0.5, steps=9, resume=True)
    again, repeated = train(tmp_path / "run", ema=0.5, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert repeated["loss"] == pytest.approx(summary["loss"])
    assert load_best(again, tmp_path / "run") is not None


def test_a_damaged_checkpoint_is_named(tmp_path: Path):
    train(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(VesaliusError, match=r"last\.ckpt: cannot be read as a checkpoint"):
        train(tmp_path / "run", resume=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_case_that_cannot_be_read_is_named_in_one_line(workers: int):
    with pytest.raises(VesaliusError) as caught:
        train(None, train=Points(bad=5), workers=workers)
    assert str(caught.value).startswith("case5.dcm: ")
    assert "OSError: pixel data ends early" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "toy.py" in caught.value.__notes__[0]


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="steps = 0"):
        TrainConfig(steps=0, batch_size=1)
    with pytest.raises(ConfigError, match="precision"):
        TrainConfig(steps=1, batch_size=1, precision="8")


def test_mixed_precision_clipping_and_memory_layout_train():
    _, summary = train(None, precision="bf16", channels_last=True, grad_clip=1.0, deterministic=True)
    assert summary["step"] == 8
    assert summary["val"]["val/loss"] > 0
