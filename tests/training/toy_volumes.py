"""The Universal Model on volumes in memory, as a script: its first gradient, in one process or joined from two."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from vesalius.data.class_tables import ClassTable
from vesalius.pretrain.universal import PRESETS, Universal
from vesalius.training.backbones import override
from vesalius.training.loop import TrainConfig, fit

CLASSES = ("liver", "spleen", "pancreas")


class Volumes:
    """Four noisy CTs; each is annotated for other classes."""

    def where(self, index: int) -> str:
        return f"case{index}"

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        mask = torch.randint(0, len(CLASSES) + 1, (16, 16, 16), generator=generator).to(torch.uint8)
        places = mask.nonzero()
        return {
            "image": torch.randint(-200, 300, (1, 16, 16, 16), generator=generator, dtype=torch.int16),
            "limits": torch.tensor([[-175.0, 250.0]]),
            "row": index,
            "mask": mask,
            "points": torch.cat([mask[tuple(places.T)][:, None], places], dim=1).int(),
            "annotated": torch.tensor([True, index != 1, index > 1]),
        }


class Recorded(Universal):
    """Writes the gradient of the first step."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step == 0 and self.trainer.is_global_zero:
            torch.save({name: p.grad for name, p in self.named_parameters() if p.grad is not None}, self.out)


def train(out: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = override(PRESETS["tiny"], {"width": 8, "crop": (16, 16, 16), "patches": 1, "even_datasets": False})
    module = Recorded(config, table=ClassTable.from_dict({"classes": list(CLASSES)}))
    module.out = out
    fit(module, Volumes(), None, TrainConfig(steps=1, accelerator="cpu", **options), progress=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=json.loads)
    options = parser.parse_args()
    train(options.out, options.config)


if __name__ == "__main__":
    main()
