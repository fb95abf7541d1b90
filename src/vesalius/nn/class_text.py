"""Vectors that stand for the names of classes: read from a file, made by a CLIP text tower, or plain stand-ins.

The published ones are CLIP ViT-B/32's, 512 numbers a class, of "A computerized tomography of a Liver", not normalised.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vesalius.errors import ConfigError, WeightsError, nearest
from vesalius.files import sha256

HASHED, CLIP = "hashed", "clip:"
SCALE = 0.39
"""Standard deviation of the published embeddings' numbers: what the network's first layer is used to."""
WIDTH = 512


def class_embeddings(source: str, names: Sequence[str], prompts: Sequence[str]) -> tuple[Tensor, str]:
    """One vector a class.

    Args:
        source: ``hashed``; ``clip:FOLDER`` with a CLIP model as transformers stores it; or a .safetensors, .pt or .pth
            file: a dict of one vector a name, or one matrix (alone, or as the dict's only one) with a row a class.
        names: of the classes, in order.
        prompts: the text of each, for CLIP.

    Returns:
        ``[K, E]`` float32, and where they are from, for the card.

    Raises:
        ConfigError: transformers is missing, or a name has no vector.
        WeightsError: a file or folder that cannot be read, or holds something else.

    >>> vectors, note = class_embeddings("hashed", ["liver", "spleen"], ["", ""])
    >>> vectors.shape, note
    (torch.Size([2, 512]), 'hashed stand-ins of the names, which carry no meaning')
    """
    if source == HASHED:
        return hashed(names), "hashed stand-ins of the names, which carry no meaning"
    if source.startswith(CLIP):
        folder = Path(source.removeprefix(CLIP))
        return clip_embeddings(prompts, folder), f"CLIP text tower {folder.name}"
    path = Path(source)
    return read_embeddings(path, names), f"{path.name} ({sha256(path)[:12]})"


def hashed(names: Sequence[str], width: int = WIDTH) -> Tensor:
    """Stand-ins ``[K, width]``: each name's own random vector, the same on every machine and in every list.

    Names that mean alike are no nearer than others, so that nothing of the text's meaning can help.

    >>> bool((hashed(["liver", "colon"])[1] == hashed(["colon"])[0]).all())
    True
    """
    rows = []
    for name in names:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
        rows.append(SCALE * torch.randn(width, generator=torch.Generator().manual_seed(seed)))
    return torch.stack(rows)


def clip_embeddings(prompts: Sequence[str], folder: str | Path) -> Tensor:
    """``[K, E]``: the projected output of a CLIP text tower, not normalised, as published.

    Args:
        prompts: a text each.
        folder: a CLIP model of transformers (config, weights and tokeniser); nothing is downloaded.

    Raises:
        ConfigError: transformers is not installed.
        WeightsError: the folder holds no such model.
    """
    try:
        from transformers import AutoTokenizer, CLIPTextModelWithProjection
    except ImportError as error:
        raise ConfigError(
            "a CLIP text tower needs transformers", remedy='pip install "vesalius[text]", or give a file'
        ) from error
    if not (Path(folder) / "config.json").is_file():
        raise WeightsError("holds no CLIP model (no config.json)", path=folder, remedy="give transformers' folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=None)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120]
        raise WeightsError(
            f"is not a CLIP text tower ({reason})", path=folder, remedy="give transformers' folder"
        ) from error
    with torch.inference_mode():
        tokens = tokenizer(list(prompts), padding=True, return_tensors="pt")
        return model.eval()(**tokens).text_embeds.float().clone()


def read_embeddings(path: str | Path, names: Sequence[str]) -> Tensor:
    """``[K, E]`` float32 from a file, by name or, from a matrix, by order.

    Raises:
        ConfigError: a name without a vector, or a matrix of fewer rows than names.
        WeightsError: the file is missing, damaged or holds something else.
    """
    path = Path(path)
    try:
        stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"cannot be read as embeddings ({str(error).splitlines()[0]})", path=path, remedy="give .safetensors or .pt"
        ) from error
    tensors = {"": stored} if isinstance(stored, Tensor) else dict(stored)
    if any(not isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise WeightsError("holds more than tensors", path=path, remedy="save a matrix, or a vector a name")
    matrix = next(iter(tensors.values())) if len(tensors) == 1 else None
    if matrix is not None and matrix.ndim == 2:
        if len(matrix) < len(names):
            raise ConfigError(f"{path} has {len(matrix)} rows for {len(names)} classes", remedy="make one a class")
        return matrix[: len(names)].float()
    for name in names:
        if name not in tensors:
            raise ConfigError(f"{path} has no vector of {name!r}", remedy=nearest(name, tensors))
    vectors = [tensors[name].float().flatten() for name in names]
    if len({len(vector) for vector in vectors}) > 1:
        raise WeightsError("its vectors are of several lengths", path=path, remedy="make them with one encoder")
    return torch.stack(vectors)
