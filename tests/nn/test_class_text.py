"""Embeddings of class names come by name or by order, from files without code, or from a CLIP text tower."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from vesalius.errors import ConfigError, WeightsError
from vesalius.nn.class_text import class_embeddings, hashed


def test_files_by_name_and_by_order(tmp_path):
    rows = torch.randn(2, 8)
    save_file({"spleen": rows[1].clone(), "liver": rows[0].clone()}, tmp_path / "named.safetensors")
    torch.save(rows.half(), tmp_path / "matrix.pt")
    for name, tolerance in (("named.safetensors", 0.0), ("matrix.pt", 1e-2)):
        found, note = class_embeddings(str(tmp_path / name), ["liver", "spleen"], ["", ""])
        torch.testing.assert_close(found, rows, atol=tolerance, rtol=0)
        assert note.startswith(name)
    with pytest.raises(ConfigError, match="no vector of 'colon'"):
        class_embeddings(str(tmp_path / "named.safetensors"), ["colon"], [""])
    with pytest.raises(ConfigError, match="2 rows for 3 classes"):
        class_embeddings(str(tmp_path / "matrix.pt"), ["a", "b", "c"], [""] * 3)
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read as embeddings"):
        class_embeddings(str(tmp_path / "bad.pt"), ["a"], [""])


def test_stand_ins_are_far_apart():
    vectors = hashed(["liver", "liver_tumor"])
    assert torch.cosine_similarity(*vectors, dim=0).abs() < 0.2


def test_a_clip_text_tower(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (tmp_path / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=12,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    transformers.CLIPTextModelWithProjection(config).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    found, note = class_embeddings(f"clip:{tmp_path / 'clip'}", ["liver", "colon"], ["a liver", "a colon"])
    assert found.shape == (2, 12)
    assert not torch.allclose(found[0], found[1])
    assert note == "CLIP text tower clip"
    with pytest.raises(WeightsError, match="no CLIP model"):
        class_embeddings(f"clip:{tmp_path}", ["liver"], ["a liver"])
