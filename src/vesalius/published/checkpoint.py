"""Weights files: read without running what is in them, and matched to a network with nothing lost in silence."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vesalius.errors import WeightsError

WRAPPERS = ("model", "state_dict", "module", "net")
EXAMPLES = 3  # names shown in a message


def safe_torch_load(path: str | Path) -> Any:
    """What a torch file holds, tensors and plain values only; nothing in it is executed.

    Training scripts keep their ``argparse.Namespace`` in the file: it is plain data and is let through.

    Raises:
        WeightsError: the file is missing, truncated, or holds other Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError("no such weights file", path=path, remedy="give the file that you downloaded")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on pickle protocols: the error below says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"refused: it holds {_culprit(str(error))}, and loading that could run code",
            path=path,
            remedy="ask for a file of tensors only, or save model.state_dict() on a machine made for untrusted files",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        raise WeightsError(
            f"cannot be read as a torch file ({str(error).splitlines()[0]})" if str(error) else "is empty",
            path=path,
            remedy="compare its size and SHA-256 with the source's and download it again",
        ) from error


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or torch file by name.

    Wrappers ({"model"}, {"state_dict"}, {"module"}, {"net"}) are opened and the prefix ``module.`` is taken off. In a
    file of several networks, dicts and lists within each other, names have a dot between (``decoder.head.weight``).

    Raises:
        WeightsError: unsafe, unreadable, or without tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            values: Any = load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"cannot be read as safetensors ({error})", path=path, remedy="check the path, or copy the file again"
            ) from error
    else:
        values = safe_torch_load(path)
    while isinstance(values, Mapping):
        inner = next((values[name] for name in WRAPPERS if isinstance(values.get(name), Mapping)), None)
        if inner is None:
            break
        values = inner
    state = {k: v for k, v in values.items() if isinstance(v, Tensor)} if isinstance(values, Mapping) else {}
    state = state or dict(_within(values, ""))
    if not state:
        raise WeightsError("holds no tensors by name", path=path, remedy="give a state dict")
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _within(values: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts and lists, by their place."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        parts = values.items()
    elif isinstance(values, list):
        parts = enumerate(values)
    for key, part in parts:
        if isinstance(part, Tensor):
            yield f"{name}{key}", part
        else:
            yield from _within(part, f"{name}{key}.")


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor, by count and by share of the network's parameters.

    Args:
        matched: the network's tensors that were filled, with their number of values.
        missing: the network's tensors that the file does not have (they keep their start values).
        unexpected: tensors of the file that nothing accounts for.
        dropped: tensors of the file left out on purpose, with the reason.
        reshaped: the network's tensors that were changed on the way, with the reason.
    """

    matched: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    unexpected: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    reshaped: dict[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The part of the network's values that came from the file, 0 to 1."""
        filled = sum(self.matched.values())
        return filled / max(filled + sum(self.missing.values()), 1)

    def check(self, *, minimum: float = 0.98) -> LoadReport:
        """Itself, if the file was used.

        Raises:
            WeightsError: the file holds weights that nothing uses, or less than `minimum` of the network was filled.
        """
        if self.unexpected:
            raise WeightsError(
                f"{len(self.unexpected)} of its tensors are used by nothing ({_some(self.unexpected)})",
                remedy="load it as the system and the part that it is",
            )
        if self.share < minimum:
            raise WeightsError(
                f"fills only {self.share:.2%} of the network; missing {len(self.missing)} tensors "
                f"({_some(self.missing)})",
                remedy="load it as the system and the part that it is",
            )
        return self

    def __str__(self) -> str:
        counts = (
            f"{len(getattr(self, kind))} {kind}" for kind in ("matched", "missing", "unexpected", "dropped", "reshaped")
        )
        return f"{', '.join(counts)}; {self.share:.2%} of the parameters from the file"

    def __rich__(self) -> Table:
        table = Table("tensors", "count", "values", "for example", title=str(self))
        for kind in ("matched", "missing", "unexpected"):
            sizes: dict[str, int] = getattr(self, kind)
            table.add_row(kind, str(len(sizes)), f"{sum(sizes.values()):,}", _some(sizes))
        for kind in ("dropped", "reshaped"):
            reasons: dict[str, str] = getattr(self, kind)
            for reason in dict.fromkeys(reasons.values()):
                names = [name for name, why in reasons.items() if why == reason]
                table.add_row(f"{kind}: {reason}", str(len(names)), "", _some(names))
        return table


def fill(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    start: Mapping[str, Tensor] | None = None,
    unexpected: Mapping[str, Tensor] | None = None,
    dropped: Mapping[str, str] | None = None,
    reshaped: Mapping[str, str] | None = None,
) -> LoadReport:
    """Put `state`, in the network's own names, into `module`, and report.

    The tensors become the parameters (no copy), so that `module` may have been built without values.

    Args:
        start: values for tensors that `state` may lack; they are reported as missing.
        unexpected, dropped, reshaped: for the report.

    Raises:
        WeightsError: a tensor has another shape than the network's, or has no value at all.
    """
    own = module.state_dict()
    values = {**(start or {}), **state}
    wrong = [name for name in values if name in own and values[name].shape != own[name].shape]
    if wrong:
        first = wrong[0]
        raise WeightsError(
            f"{len(wrong)} tensors have another shape: {first} is {list(values[first].shape)}, "
            f"the network's {list(own[first].shape)}"
        )
    known = {n: t.detach().to(own[n].dtype).contiguous() for n, t in values.items() if n in own}
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    module.load_state_dict(known, strict=False, assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trained[name])
    needed = {name: tensor.numel() for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    report = LoadReport(
        matched={name: tensor.numel() for name, tensor in known.items() if name in state},
        missing={name: size for name, size in needed.items() if name not in state},
        unexpected={n: t.numel() for n, t in {**values, **(unexpected or {})}.items() if n not in known},
        dropped=dict(dropped or {}),
        reshaped=dict(reshaped or {}),
    )
    absent = {name: size for name, size in report.missing.items() if name not in known}
    return report.check(minimum=1.0) if absent else report


def _some(names: Iterable[str]) -> str:
    """The first names of many."""
    names = list(names)
    more = f", ... {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return ", ".join(names[:EXAMPLES]) + more


def _culprit(message: str) -> str:
    """The name of the forbidden object in torch's explanation."""
    found = re.search(r"GLOBAL (\S+)", message)
    if found:
        return f"the Python object {found[1]}"
    return "Python objects other than tensors"
