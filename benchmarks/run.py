"""Run all benchmarks, each in a fresh process, print the ratios and write `benchmarks/RESULTS.md`.

python benchmarks/run.py [--threads 1] [--repeats 15] [--full]
"""

from __future__ import annotations

import argparse
import datetime
import os
from pathlib import Path

from vesalius.files import write_text

from measure import Row, fresh, load, machine, table

HERE = Path(__file__).parent


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="torch threads of both sides")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--full", action="store_true", help="networks of published sizes too; minutes, several GB")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    before = load()
    sections = []
    sizes = ("small", "vit_s", "vit_b") if options.full else ("small",)
    for title, script, words in (
        *((f"MAE pre-training step, {size}", "pretrain_step.py", ("--size", size)) for size in sizes),
        *((f"USFM pre-training step, {size}", "usfm_step.py", ("--size", size)) for size in sizes),
        *((f"Step with few labels on a frozen trunk, {size}", "ept_step.py", ("--size", size)) for size in sizes),
        *(
            (f"BrainSegFounder pre-training step, {size}", "volumes_step.py", ("--size", size))
            for size in (("small", "64m") if options.full else ("small",))
        ),
        *(
            (f"3DSAM-adapter step, {size}", "sam3d_step.py", ("--size", size))
            for size in (("small", "pair", "vit_b") if options.full else ("small", "pair"))
        ),
        *(
            (f"MA-SAM step, {size}", "masam_step.py", ("--size", size))
            for size in (("small", "vit_b") if options.full else ("small",))
        ),
        *(
            (f"SAM's image encoder, {size}", "sam_encoder.py", ("--size", size))
            for size in (("small", "vit_b_512", "vit_b_1024") if options.full else ("small",))
        ),
        ("Reading and loading", "reader.py", ()),
        ("Whole volumes: windows and caches", "volumes.py", ("--full",) if options.full else ()),
        ("Attention maps of several models", "attention.py", ("--full",) if options.full else ()),
    ):
        print(f"\n{title}", flush=True)
        shared = ("--threads", str(options.threads), "--repeats", str(options.repeats))
        text = table([Row(**row) for row in fresh(HERE / script, *words, *shared)])
        print(text, flush=True)
        sections.append(f"## {title}\n\n{text}\n")
    write_text(
        options.out,
        "\n".join(
            [
                "# Benchmarks",
                "",
                f"Written by `make bench` on {datetime.date.today()}: medians of sides that took turns in one process.",
                "Memory is what the peak of a fresh process rises by above its imports, doing one side only.",
                "",
                *machine(),
                f"- Load average before and after: {before}, {load()} (a quiet machine: about {options.threads})",
                "",
                *sections,
            ]
        ),
    )
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
