"""The command line: every verb is a Python function, its options are the function's parameters.

A verb names the function that it runs; nothing heavy is imported before it is known which one that is. An error that
the user can act on is one line on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from vesalius import __version__
from vesalius.errors import ConfigError, VesaliusError, nearest
from vesalius.systems import SYSTEMS, System, info


@dataclass(frozen=True)
class Verb:
    """A word of the command line.

    Args:
        does: one line for the overview.
        function: "module:name" of what runs, its parameters are the options; None where the choice itself says so.
        examples: whole commands, as one would type them.
        choices: "module:dict" of the words that may follow (systems, methods, kinds).
        own: "module:dict" of further ones, each with the "module:name" that runs in place of `function`.
        positional: parameters without a flag, in order.
        extra: "module:dataclass" whose fields are further options.
        reports: the run's page, report.html, is made anew afterwards.
    """

    does: str
    function: str | None
    examples: tuple[str, ...]
    choices: str | None = None
    own: str | None = None
    positional: tuple[str, ...] = ()
    extra: str | None = None
    reports: bool = False


VERBS = {
    "phantom": Verb(
        "make images with truth, as real files",
        None,
        (
            "vesalius phantom ultrasound --n 200 --out phantoms/us",
            "vesalius phantom ultrasound --format dicom --out us",
            "vesalius phantom brain --n 40 --out phantoms/brain",
            "vesalius phantom ct --n 40 --lookalikes 1 --format dicom --out phantoms/ct",
        ),
        choices="vesalius.data.phantoms:PHANTOMS",
    ),
    "index": Verb(
        "read a folder of images into one table, split by patient",
        "vesalius.data.index:index",
        (
            "vesalius index hospital/ -o us.parquet",
            "vesalius index Dataset_BUSI_with_GT/ -o busi.parquet --organ breast",
        ),
        positional=("folder",),
    ),
    "pretrain": Verb(
        "pre-train a foundation model",
        "vesalius.training.verbs:pretrain_system",
        (
            "vesalius pretrain usfm --data us.parquet --preset tiny --out runs/usfm",
            "vesalius pretrain usfm --data us.parquet --preset tiny --out runs/usfm --resume",
            "vesalius pretrain deblurring --data us.parquet --preset paper --devices 8 --precision bf16 --out runs/db",
            "vesalius pretrain brainsegfounder --data healthy.parquet --stage 1 --out runs/s1",
            "vesalius pretrain brainsegfounder --data disease.parquet --stage 2 --init runs/s1 --out runs/s2",
            "vesalius pretrain universal --data a.parquet b.parquet --classes classes.yaml --out runs/universal",
        ),
        choices="vesalius.pretrain:SYSTEMS",
        extra="vesalius.training.loop:TrainConfig",
        reports=True,
    ),
    "extend": Verb(
        "teach a Universal Model a class more, and compare the old ones before and after",
        "vesalius.training.extend:extend_run",
        (
            'vesalius extend runs/universal --class "colon polyp" --organs colon --data new.parquet --out runs/polyp',
            "vesalius extend runs/universal --class pancreas --data new.parquet --pseudo_labels --out runs/pancreas",
        ),
        positional=("run",),
        extra="vesalius.training.loop:TrainConfig",
        reports=True,
    ),
    "adapt": Verb(
        "adapt a backbone to a task with labels",
        "vesalius.training.verbs:adapt_backbone",
        (
            "vesalius adapt full --backbone runs/usfm --task segmentation --data us.parquet --out runs/seg",
            "vesalius adapt ept --backbone vit:vit_base.pth --data endo.parquet --shots 5 --out runs/ept",
            "vesalius adapt vpt --backbone usfm:USFM.pth --data us.parquet --model.length 5 --out runs/vpt",
            "vesalius adapt sam3d --base sam_vit_b_01ec64.pth --data kits.parquet --target 2 --intensity kits"
            " --out runs/kits",
            "vesalius adapt masam --base sam_vit_h_4b8939.pth --data btcv.parquet --precision bf16 --out runs/btcv",
            "vesalius adapt masam --base sam_vit_b_01ec64.pth --data msd.parquet --classes 'pancreas tumor' --box"
            " --out runs/box",
        ),
        choices="vesalius.adapt:METHODS",
        own="vesalius.adapt:ON_SAM",
        extra="vesalius.training.loop:TrainConfig",
        reports=True,
    ),
    "evaluate": Verb(
        "score a run on held-out patients, with confidence intervals",
        "vesalius.evaluation.verbs:evaluate",
        (
            "vesalius evaluate runs/seg --data us.parquet",
            "vesalius evaluate runs/usfm --data us.parquet --protocol linear_probe",
            "vesalius evaluate runs/kits --data kits.parquet --clicks 10 --tolerance 5 --empty sam3d",
        ),
        positional=("run",),
        reports=True,
    ),
    "compare": Verb(
        "compare methods with few labels, over many draws of them",
        "vesalius.compare:compare_methods",
        (
            "vesalius compare --data us.parquet --backbones runs/usfm,random:usfm --shots 1,5,10 --out compare/us",
            "vesalius compare --data us.parquet --backbones runs/usfm --methods ept,vpt:layers=shallow,lora:rank=4"
            " --out compare/us",
        ),
    ),
    "predict": Verb(
        "write masks, scores and overlays for files",
        "vesalius.evaluation.verbs:predict",
        (
            "vesalius predict runs/seg image.dcm --out out/",
            "vesalius predict runs/seg folder/ --out out/ --formats nifti,dicom-seg",
            "vesalius predict runs/universal ct.nii.gz --classes liver kidney --out out/",
            "vesalius predict runs/kits series/ --point 210,304,61 --out out/",
            "vesalius predict runs/kits series/ --point -31.5,-20,114 -28,-6,120 --space lps --out out/",
            "vesalius predict runs/box ct.nii.gz --box 180,260,50,240,330,74 --out out/",
        ),
        positional=("run", "inputs"),
    ),
    "segment": Verb(
        "ask a SAM for the mask of a click or a box, or for everything in an image",
        "vesalius.evaluation.segment:segment",
        (
            "vesalius segment image.dcm --base sam_vit_b_01ec64.pth --point 120,84 --out out/",
            "vesalius segment ct.nii.gz --base sam_vit_b_01ec64.pth --frame 40 --window 40 400 --box 90,60,160,120"
            " --out out/",
            "vesalius segment image.png --base sam_vit_b_01ec64.pth --automatic --image_size 512 --out out/",
        ),
        positional=("image",),
    ),
    "collapse": Verb(
        "fold the prompts of an EPT run into one logit a token",
        "vesalius.commands:collapse",
        ("vesalius collapse runs/ept --out runs/ept-small",),
        positional=("run",),
    ),
    "convert": Verb(
        "write an authors' checkpoint as safetensors with a card",
        "vesalius.commands:convert",
        ("vesalius convert usfm USFM_latest.pth --out weights/usfm.safetensors",),
        positional=("system", "path"),
    ),
    "verify": Verb(
        "prove that ours gives the published code's numbers",
        "vesalius.commands:verify",
        ("vesalius verify tests/parity/usfm_*.json.gz", "vesalius verify usfm_cls_a.json.gz --save out/ --json"),
        positional=("fixtures",),
    ),
    "curate": Verb(
        "make a dataset of unlabelled volumes: models propose, people correct what matters",
        None,
        (
            "vesalius curate atlas init atlas/ --volumes cts/ --classes classes.yaml --predictors a.yaml b.yaml c.yaml",
            "vesalius curate atlas step atlas/ --workers 4",
            "vesalius curate atlas status atlas/",
            "vesalius curate atlas import atlas/ edited/ --who KB",
            "vesalius curate atlas next atlas/",
            "vesalius curate atlas assemble atlas/ --out dataset/",
        ),
        choices="vesalius.curate:CURATIONS",
        positional=("atlas", "files"),
    ),
    "review": Verb(
        "open the page on which people correct what the models propose",
        "vesalius.review:review",
        (
            "vesalius review atlas/ --download",
            "vesalius review atlas/ --who KB",
            "vesalius review atlas/ --who MR --reader second --port 8766",
        ),
        positional=("atlas",),
    ),
    "claim": Verb(
        "run a paper's claim with all its controls, over seeds",
        "vesalius.claims:claim",
        (
            "vesalius claim usfm --out claims/usfm",
            "vesalius claim deblurring --seeds 5 --data us.parquet --out claims/db",
        ),
        choices="vesalius.claims:CLAIMS",
    ),
    "demo": Verb(
        "pre-train, adapt and compare on phantoms, and leave a page",
        "vesalius.demo:demo",
        ("vesalius demo --out demo",),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 2 for an error that the user can act on, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except VesaliusError as error:
        print(f"vesalius: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("vesalius: interrupted; the same command goes on (where there is --resume, with it)", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    verb, rest = words[0], words[1:]
    if verb in ("-V", "--version"):
        print(f"vesalius {__version__}")
        return 0
    if verb == "list":
        print(_listing())
        return 0
    if verb == "info":
        if not rest or rest[0].startswith("-"):
            print(
                "usage: vesalius info SYSTEM\n\nWhat a system is, which weights load, whom to cite. " + _known(SYSTEMS)
            )
            return 0
        print(_about(info(rest[0])))
        return 0
    if verb not in VERBS:
        raise ConfigError(f"no verb is called {verb!r}", remedy=nearest(verb, [*VERBS, "list", "info"]))
    return _run(verb, VERBS[verb], rest)


def _run(name: str, verb: Verb, words: list[str]) -> int:
    first: list[str] = []
    own = _find(verb.own) if verb.own else {}
    choices = {**(_find(verb.choices) if verb.choices else {}), **own}
    place: Any = verb.function
    while choices:
        asked = " ".join([name, *first])
        if not words or words[0] in ("-h", "--help"):
            print(f"usage: vesalius {asked} {{{','.join(choices)}}} [options]\n\n{verb.does}\n\n{_examples(verb)}")
            print(f"\nvesalius {asked} {next(iter(choices))} --help lists the options.")
            return 0 if words else 2
        if words[0] not in choices:
            raise ConfigError(f"{asked} knows no {words[0]!r}", remedy=nearest(words[0], choices))
        chosen, first, words = choices[words[0]], [*first, words[0]], words[1:]
        nested = isinstance(chosen, Mapping)  # curate atlas step
        place, choices = verb.function or chosen, chosen if nested else {}
    alone = own.get(first[0]) if first else None
    function = _find(alone or place)
    given = first if verb.function and not alone else []
    from vesalius._parser import parse  # jsonargparse: not needed for list, info and the overview

    keywords = parse(
        function,
        prog=" ".join(["vesalius", name, *first]),
        words=words,
        given=given,
        positional=[one for one in verb.positional if one in signature(function).parameters],
        presets=_presets(name, first, words),
        extra=_find(verb.extra) if verb.extra else None,
        epilog=_examples(verb),
    )
    if keywords is not None:
        result = function(*given, **keywords)
        if verb.reports:
            _report(result)
        if isinstance(result, int) and not isinstance(result, bool):
            return result
    return 0


def _report(result: Any) -> None:
    """Make the page of the run that `result` (a verb's) is about."""
    run = result["run"] if isinstance(result, dict) else result.run
    if Path(run, "config.yaml").is_file() and _find("vesalius.training.runs:is_first_process")():
        print(f"page: {_find('vesalius.report.run:run_report')(run)}")


def _presets(name: str, first: list[str], words: list[str]) -> dict[str, Any] | None:
    """By preset, the settings of a pre-training system or of a method of adaptation, which become options."""
    if name == "adapt" and first[0] in _find("vesalius.adapt:ON_SAM"):
        presets = _find(f"vesalius.adapt.{first[0]}:PRESETS")
        base = _find("vesalius._parser:chosen")(words, "--base", "")
        return {**presets, "auto": presets[_find("vesalius.adapt.sam_files:preset_of")(base)]}
    if name == "adapt":
        settings = _find("vesalius.adapt.methods:settings")(first[0])
        return dict.fromkeys(("auto", *_find("vesalius.adapt.adaptation:PRESETS")), settings)
    if name != "pretrain":
        return None
    stage = _find("vesalius._parser:chosen")(words, "--stage", "1")
    return _find("vesalius.pretrain:stage_presets")(first[0], int(stage) if stage.isdigit() else 1)


def _find(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)


def _examples(verb: Verb) -> str:
    return "examples:\n" + "\n".join(f"  {line}" for line in verb.examples)


def _known(names: Sequence[str] | dict[str, Any]) -> str:
    return f"Known: {', '.join(names)}."


def _overview() -> str:
    width = max(map(len, VERBS))
    rows = [f"  {name:<{width}}  {verb.does}" for name, verb in VERBS.items()]
    rows += [f"  {'list':<{width}}  what there is", f"  {'info':<{width}}  what a system is, and whom to cite"]
    tour = [
        "vesalius phantom ultrasound --n 200 --out phantoms/us",
        "vesalius index phantoms/us -o us.parquet",
        "vesalius pretrain usfm --data us.parquet --preset tiny --out runs/usfm",
        "vesalius adapt full --backbone runs/usfm --task segmentation --data us.parquet --out runs/seg",
        "vesalius evaluate runs/seg --data us.parquet",
        "vesalius predict runs/seg phantoms/us/breast --out out/",
    ]
    return "\n".join(
        [
            f"vesalius {__version__}: foundation models for medical images",
            "",
            "usage: vesalius VERB ... [--help]",
            "",
            *rows,
            "",
            "from a folder to a segmentation:",
            *(f"  {line}" for line in tour),
            "",
            "Nothing is downloaded unless you ask for it.",
        ]
    )


def _listing() -> str:
    width = max(map(len, SYSTEMS))
    return "\n".join(f"{s.name:<{width}}  {s.chapter:<8}  {s.title}" for s in SYSTEMS.values())


def _about(system: System) -> str:
    return "\n".join(
        [
            f"{system.name} ({system.chapter}): {system.title}",
            "",
            system.idea,
            "",
            f"Weights that load: {system.weights}",
            f"Licence: {system.licence}",
            f"DOI: {system.doi}",
            "",
            system.bibtex,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
