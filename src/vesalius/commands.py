"""Verbs of the command line that print what a Python function returns."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence

from rich.console import Console


def verify(fixtures: Sequence[str], *, save: str | None = None, json: bool = False) -> int:
    """Rebuild the published checkpoints that parity fixtures describe and compare what the networks compute.

    Args:
        fixtures: files NAME.json.gz, with NAME.npz beside them.
        save: folder for NAME.npz with the computed arrays, whole.
        json: print rows as JSON instead of a table.
    """
    from vesalius.evaluation.verify import table
    from vesalius.evaluation.verify import verify as run

    rows = run(fixtures, save=save)
    if json:
        print(json_format.dumps([row.to_dict() for row in rows], indent=2))
    else:
        Console().print(table(rows))
    return 0 if all(row.ok for row in rows) else 1


def convert(
    system: str,
    path: str,
    *,
    out: str,
    part: str | None = None,
    image_size: int | None = None,
    in_channels: int | None = None,
    as_published: bool = False,
) -> int:
    """Write an authors' checkpoint as safetensors, with a card: source, SHA-256, licence, input contract.

    Args:
        system: whose file it is: usfm, deblurring, mae, vit, ept, brainsegfounder, universal or sam.
        path: the authors' file.
        out: a folder, or a file NAME.safetensors.
        part: what of it: backbone, encoder, pretrain, classification, pyramid, segmentation or promptable; the system's
            usual one if left out.
        image_size: pixels of the side; position tables are interpolated.
        in_channels: 1 sums the RGB filters, which on a grey image is the same.
        as_published: resize relative position tables with the published code's transposition.
    """
    from vesalius.published.load import convert as run

    written = run(
        system, path, out, part=part, image_size=image_size, in_channels=in_channels, as_published=as_published
    )
    print(f"written: {written}, with its card beside it")
    return 0


def collapse(run: str, *, out: str, trunk: str | None = None) -> int:
    """Fold the prompts of a run of ept into one logit a token: the same outputs from a smaller file.

    Args:
        run: the run folder.
        out: folder of the smaller one.
        trunk: where the trunk lies now, if it was moved.
    """
    from vesalius.adapt.networks import collapse_run

    print(f"written: {collapse_run(run, out, trunk=trunk)}, with its card beside it")
    return 0
