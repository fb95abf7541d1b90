"""A small network and endless data, as a script: what the loop's tests train, kill and run on two processes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from vesalius.nn.optim import adamw, warmup_cosine
from vesalius.training.loop import TrainConfig, fit


class Points:
    """32 samples of 8 numbers; `delay` seconds each, `bad` is one that cannot be read."""

    def __init__(self, delay: float = 0.0, bad: int | None = None):
        self.delay, self.bad = delay, bad

    def where(self, index: int) -> str:
        return f"case{index}.dcm"

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.delay)
        if index == self.bad:
            raise OSError("pixel data ends early")
        return {"image": torch.linspace(-1, 1, 8) * (1 + index / 8)}


class Toy(LightningModule):
    """Restores noisy points; with batch norm (buffers), dropout (torch's generator) and a learning-rate schedule."""

    def __init__(self, dropout: float = 0.2, norm: bool = True):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8)
        )

    def view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        clean = sample["image"]
        return {"clean": clean, "noisy": clean + torch.randn(8, generator=generator)}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch["noisy"]), batch["clean"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss = nn.functional.mse_loss(self.net(batch["noisy"]), batch["clean"])
        self.log("val/loss", loss, on_epoch=True, sync_dist=True, batch_size=len(batch["clean"]))

    def configure_optimizers(self) -> dict[str, Any]:
        total = self.total_steps
        return adamw(self, lr=0.01, schedule=lambda step: warmup_cosine(step, total=total, warmup=3, lr=0.01))


def kill_in_save(at: int) -> None:
    """End this process with SIGKILL when half of the checkpoint of step `at` is written."""
    save = torch.save

    def half(checkpoint: dict[str, Any], path: Path) -> None:
        save(checkpoint, path)
        if checkpoint["global_step"] == at:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--config", type=json.loads, default={})
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--kill-in-save", type=int)
    options = parser.parse_args()
    if options.kill_in_save:
        kill_in_save(options.kill_in_save)
    torch.manual_seed(0)
    module = Toy(dropout=0.0, norm=False) if options.plain else Toy()
    config = TrainConfig(**options.config, accelerator="cpu")
    fit(module, Points(options.delay), options.out, config, val=Points(), progress=False)


if __name__ == "__main__":
    main()
