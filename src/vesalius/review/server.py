"""What the page asks for: the queue, voxels, and where a judgement goes. Everything else is a 404.

A case is known by the project's identifier, a structure by its name; neither paths nor DICOM's tags are answered.
Voxels travel as NIfTI in one axis order (`vesalius.review.edits`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from vesalius.curate.masks import read_values
from vesalius.curate.project import KINDS, Atlas
from vesalius.curate.records import READERS, VERDICTS, Conflict, Review
from vesalius.errors import ConfigError, VesaliusError
from vesalius.images import Image
from vesalius.review import viewer
from vesalius.review.edits import Grid, Refused, decode_mask, encode, pack, read_file
from vesalius.review.security import LIMIT, Guard

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
KEPT = 2
"""Volumes that stay in memory: the one that is open, and the one before."""


class Judgement(BaseModel):
    """A reader's verdict on a structure, as the page sends it.

    Args:
        based_on: the newest version that the reader saw, 0 for the proposal.
        verdict: accept, corrected or cannot_tell.
        who: name or initials.  reader: first or second.
        seconds: spent on it.
        comment: free text.
        mask: base64 of a NIfTI file of 0 and 1; None for cannot_tell.
    """

    based_on: Annotated[int, Field(ge=0)]
    verdict: Literal["accept", "corrected", "cannot_tell"]
    who: Annotated[str, Field(min_length=1, max_length=80, pattern=r"\S")]
    reader: Literal["first", "second"] = "first"
    seconds: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 0.0
    comment: Annotated[str, Field(max_length=4000)] = ""
    mask: str | None = None


class Volumes:
    """The project's images, the last few of them in memory."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        self.image: Callable[[str], Image] = lru_cache(KEPT)(atlas.image)

    def grid(self, case: str) -> Grid:
        """The grid of a case's image, on which its masks are."""
        return Grid.of(self.image(case))


def make_app(
    atlas: Atlas,
    *,
    token: str | None,
    host: str,
    port: int,
    who: str = "",
    reader: str = "first",
    show_tags: Sequence[str] = (),
    limit: int = LIMIT,
) -> Guard:
    """The page's server as an ASGI application.

    Args:
        atlas: the project.
        token: that requests must bring; None for none.
        host, port: that it listens on.
        who: the name that the page proposes for the reader.  reader: first or second.
        show_tags: names of `Image.tags` that may be shown.
        limit: bytes of a request.
    """
    app = FastAPI(title="Vesalius review", docs_url=None, redoc_url=None, openapi_url=None)
    volumes = Volumes(atlas)
    assets = _assets()

    @app.exception_handler(Conflict)
    def conflict(request: Request, error: Conflict) -> Response:
        return JSONResponse({"message": "somebody saved a newer version", "newest": _review(error.newest)}, 409)

    @app.exception_handler(VesaliusError)
    def refused(request: Request, error: VesaliusError) -> Response:
        if isinstance(error, Refused):
            return JSONResponse({"message": str(error)}, 422)
        if isinstance(error, ConfigError):
            return JSONResponse({"message": "no such case, structure, proposal or map"}, 404)
        return JSONResponse({"message": "the project's files cannot be read; see: vesalius curate atlas status"}, 500)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]  # what was sent is not repeated
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse({"message": f"{place or 'the request'}: {first['msg']}"}, 422)

    @app.get("/")
    def page() -> Response:
        return FileResponse(assets["index.html"], media_type="text/html")

    @app.get("/page/{name}")
    def asset(name: str) -> Response:
        path = assets.get(name)
        if path is None or not path.is_file():
            return JSONResponse({"message": "no such file"}, 404)
        return FileResponse(path, media_type=TYPES[path.suffix])

    @app.get("/api/project")
    def project() -> dict[str, Any]:
        return {
            "name": atlas.path.resolve().name,
            "predictors": list(atlas.predictors),
            "structures": list(atlas.targets),
            "who": who,
            "reader": reader,
            "verdicts": VERDICTS,
            "readers": READERS,
            "round": atlas.round(),
            "viewer": viewer.installed(),
            "missing": "" if viewer.installed() else viewer.MISSING,
        }

    @app.get("/api/queue")
    def queue() -> list[dict[str, Any]]:
        return [_queued(atlas, item.__dict__) for item in atlas.queue()]

    @app.get("/api/cases/{case}")
    def case_facts(case: str) -> dict[str, Any]:
        image = volumes.image(case)
        return {
            "case": case,
            "size": image.size[::-1],
            "spacing": image.spacing[::-1] if image.spacing else None,
            "placed": volumes.grid(case).placed,
            "channels": image.channels,
            "ct": _is_ct(image.modality or atlas.row(case)["modality"], image.array),
            "windows": [image.window or _window(values) for values in image.array],
            "tags": {name: image.tags[name] for name in show_tags if name in image.tags},
        }

    @app.get("/api/cases/{case}/image/{channel}")
    def pixels(case: str, channel: int) -> Response:
        image = volumes.image(case)
        if not 0 <= channel < len(image.channels):
            raise ConfigError("no such channel")
        return _binary(encode(image.array[channel], Grid.of(image)))

    @app.get("/api/cases/{case}/{structure}")
    def item(case: str, structure: str) -> dict[str, Any]:
        reviews = atlas.reviews(case, structure)
        return {
            "version": reviews[-1].version if reviews else 0,
            "proposals": list(atlas.proposals(case, structure)),
            "maps": [kind for kind in KINDS if kind != "average" and atlas.map_path(case, kind, structure)],
            "reviews": [_review(one) for one in reviews],
        }

    @app.get("/api/cases/{case}/{structure}/proposals/{name}")
    def proposal(case: str, structure: str, name: str) -> Response:
        if name not in atlas.proposals(case, structure):
            raise ConfigError("no such proposal")
        return _binary(pack(atlas.proposal(case, structure, name), volumes.grid(case)))

    @app.get("/api/cases/{case}/{structure}/versions/{version}")
    def version(case: str, structure: str, version: int) -> Response:
        if not 0 <= version <= len(atlas.reviews(case, structure)):
            raise ConfigError("no such version")
        return _binary(pack(atlas.version_mask(case, structure, version), volumes.grid(case)))

    @app.get("/api/cases/{case}/{structure}/maps/{kind}")
    def heat(case: str, structure: str, kind: str) -> Response:
        path = atlas.map_path(case, kind, structure)
        if path is None:
            raise ConfigError("no such map")
        return _binary(pack(read_values(path), volumes.grid(case)))

    @app.post("/api/cases/{case}/{structure}/import")
    async def imported(case: str, structure: str, request: Request) -> Response:
        """A mask from another program's file, checked and turned for the page; it is saved with a judgement only."""
        image, data = volumes.image(case), await request.body()
        atlas.reviews(case, structure)  # the structure must exist
        return _binary(pack(read_file(data, image, structure, atlas.classes), Grid.of(image)))

    @app.post("/api/cases/{case}/{structure}/reviews")
    def judge(case: str, structure: str, judgement: Judgement) -> dict[str, Any]:
        mask = None if judgement.mask is None else _mask(judgement.mask, volumes.grid(case))
        if judgement.verdict == "corrected" and mask is None:
            raise Refused("a correction needs its mask")
        if judgement.based_on > len(atlas.reviews(case, structure)):
            raise Refused(f"there is no version {judgement.based_on} to base it on", remedy="load the page again")
        saved = atlas.save_review(case, structure, mask, **judgement.model_dump(exclude={"mask"}))
        return _review(saved)

    return Guard(app, token, host, port, limit)


def _window(values: NDArray[Any]) -> tuple[float, float]:
    """Centre and width that show the middle 99 % of ``[D, H, W]``, from a part of its voxels."""
    low, high = np.percentile(values[::2, ::4, ::4], (0.5, 99.5))
    return float(low + high) / 2, max(float(high - low), 1e-6)


def _is_ct(modality: str | None, array: NDArray[Any]) -> bool:
    """NIfTI does not say, but only Hounsfield units have air at -1000."""
    return modality == "CT" or (not modality and bool(array.min() <= -900))


def _assets() -> dict[str, Path]:
    """The page's files by name: nothing else is served, whatever an address says."""
    found = {path.name: path for path in PAGE.iterdir() if path.suffix in TYPES}
    return {**found, "niivue.js": viewer.FILE}


def _queued(atlas: Atlas, values: dict[str, Any]) -> dict[str, Any]:
    """A line of the queue, with who has judged it so far."""
    reviews = atlas.reviews(values["case"], values["structure"])
    newest = {one.reader: one for one in reviews}  # the last one of each reader
    return {
        **values,
        "version": len(reviews),
        "seconds": sum(one.seconds for one in reviews),
        "verdicts": {reader: {"verdict": one.verdict, "who": one.who} for reader, one in newest.items()},
        "agreement": _agreement(atlas, newest),
    }


def _agreement(atlas: Atlas, newest: dict[str, Review]) -> float | None:
    """Dice of the two readers' masks, where both drew or accepted one."""
    if any(reader not in newest or not newest[reader].mask for reader in READERS):
        return None
    first, second = (newest[reader] for reader in READERS)
    return _dice(atlas.path, atlas, first.case, first.structure, first.version, second.version)


def _dice_of(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    total = int(one.sum()) + int(other.sum())
    return 1.0 if total == 0 else 2 * int((one & other).sum()) / total


_KNOWN: dict[tuple[Any, ...], float] = {}


def _dice(path: Path, atlas: Atlas, case: str, structure: str, one: int, other: int) -> float:
    """Kept: versions never change."""
    key = (path, case, structure, one, other)
    if key not in _KNOWN:
        _KNOWN[key] = _dice_of(atlas.version_mask(case, structure, one), atlas.version_mask(case, structure, other))
    return _KNOWN[key]


def _review(review: Review) -> dict[str, Any]:
    kept = ("version", "verdict", "who", "reader", "when", "based_on", "seconds", "comment", "changed", "round")
    return {**{name: getattr(review, name) for name in kept}, "drawn": bool(review.mask)}


def _mask(text: str, grid: Grid) -> NDArray[np.bool_]:
    try:
        return decode_mask(base64.b64decode(text, validate=True), grid)
    except binascii.Error as error:
        raise Refused("the mask is not base64") from error


def _binary(data: bytes) -> Response:
    return Response(data, media_type="application/octet-stream")
