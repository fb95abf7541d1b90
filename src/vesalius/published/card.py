"""The card beside every weights file: what the network is, what pixels it expects, where it came from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vesalius.data.contract import InputContract
from vesalius.data.volumes.contract import VolumeContract
from vesalius.errors import WeightsError
from vesalius.files import write_text

Contract = InputContract | VolumeContract
"""What a 2-D network expects of an image, or a 3-D one of a volume."""


@dataclass(frozen=True)
class Card:
    """What `predict` and `adapt` apply, so that nobody has to remember it.

    Args:
        system: usfm, deblurring, vit, ...
        part: what the file holds: backbone, pretrain, classification, segmentation, enhancement.
        architecture: {"name": ..., "config": {...}}: enough to rebuild the network.
        contract: the pixels or voxels the network expects.
        source: where the weights came from (a file name, a run, a URL).  sha256: of that source file.
        licence: of the weights.  citation: whom to cite.
        classes: names of the outputs, where there are any.
        notes: what a user should know (what was dropped, what stayed random).
    """

    system: str
    part: str
    architecture: dict[str, Any]
    contract: Contract
    source: str = ""
    sha256: str = ""
    licence: str = ""
    citation: str = ""
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write the card as JSON, and as Markdown beside it."""
        path = Path(path)
        write_text(path, json.dumps({**asdict(self), "contract": self.contract.to_dict()}, indent=2) + "\n")
        write_text(path.with_suffix(".md"), self.markdown())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Card:
        """Read a card.

        Raises:
            WeightsError: it is missing or not a card.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            pixels = values.pop("contract")
            kind: type[Contract] = VolumeContract if "roi" in pixels else InputContract
            contract = kind.from_dict(pixels)
            values["classes"], values["notes"] = tuple(values["classes"]), tuple(values["notes"])
            return cls(contract=contract, **values)
        except FileNotFoundError as error:
            raise WeightsError("no card beside the weights", path=path, remedy="write one with convert") from error
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"not a weights card ({error})", path=path, remedy="write one with convert") from error

    @property
    def image_contract(self) -> InputContract:
        """The contract of a 2-D network.

        Raises:
            WeightsError: these weights read volumes.
        """
        if not isinstance(self.contract, InputContract):
            raise WeightsError(f"{self.system}, part {self.part}, reads volumes", remedy="give weights for 2-D images")
        return self.contract

    def markdown(self) -> str:
        """The card as a page to read."""
        lines = [
            f"# {self.system} · {self.part}",
            "",
            f"- **Architecture**: {self.architecture['name']}",
            *_describe(self.contract),
            f"- **Source**: {self.source or 'trained here'}",
            f"- **SHA-256**: {self.sha256 or 'see weights.safetensors'}",
            f"- **Licence**: {self.licence or 'not stated'}",
            f"- **Cite**: {self.citation or 'not stated'}",
        ]
        if self.classes:
            lines.append(f"- **Classes**: {', '.join(self.classes)}")
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines) + "\n"


def _describe(contract: Contract) -> list[str]:
    """A contract in lines to read."""
    c = contract
    if isinstance(c, InputContract):
        return [
            f"- **Input**: {c.size} px, {c.channels} channel(s), mean {c.mean}, std {c.std}, {c.interpolation} resize",
            f"- **Blur**: {c.blur or 'none'}",
        ]
    spacing = f"{' x '.join(f'{side:g}' for side in c.spacing)} mm" if c.spacing else "its own spacing"
    return [
        f"- **Input**: {', '.join(c.channels)}; axes {c.orientation}, {spacing}, windows of {list(c.roi)} voxels",
        f"- **Intensities**: {c.intensity}",
    ]
