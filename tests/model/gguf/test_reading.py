"""`python -m model import` reads a GGUF file back exactly, or refuses it by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from conf.errors import InputError
from model.families.folder import read_config
from model.import_checkpoint import ImportModelConfig, import_checkpoint
from tests.model.families.cases import GEMMA3, LINEAR, LLAMA3, OLMO3, YARN
from tests.model.families.stock import load_stock
from tests.model.gguf.folders import (
    ODD_LINES,
    TOKENIZERS,
    byte_level,
    family_config,
    make_folder,
    write_gguf,
)

pytest.importorskip("gguf", reason="gguf is not installed (extra gguf)")

FULL = {"sliding_window": None, "window_pattern": None}
CASES = {
    "llama": ("llama", {"rope_scaling": {}, "rope_theta": 1e6}),
    "llama, tied, llama3": ("llama", {**LLAMA3, "tie_embeddings": True}),
    "llama, linear": ("llama", LINEAR),
    "llama, YaRN": ("llama", {"rope_scaling": {**YARN["rope_scaling"], "attention_factor": 1.3}}),
    "qwen2": ("qwen2", {**FULL, "num_kv_heads": 1}),
    "qwen3": ("qwen3", {**FULL, "tie_embeddings": True}),
    "olmo2": ("olmo2", {"tie_embeddings": True}),
    "olmo3": ("olmo3", OLMO3),
    "gemma3": ("gemma3_text", {**GEMMA3, "query_pre_attn_scalar": None, "logit_softcap": 3.0}),
    "smollm3": ("smollm3", {**FULL, "rope_pattern": "RRRN"}),
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


def made(family, changes, tokenizer, tmp_path, type="f32") -> tuple[Path, Path]:
    """Returns a folder, and the folder that is imported from its GGUF file."""
    folder = make_folder(tmp_path / "model", family_config(family, **changes), tokenizer)
    file, out = write_gguf(folder, type), tmp_path / "out"
    import_checkpoint(ImportModelConfig(str(file), str(out)))
    return folder, out


@torch.no_grad()
def logits(folder):
    ids = torch.randint(4, 600, (1, 200), generator=torch.Generator().manual_seed(1))
    return load_stock(folder).float()(ids).logits


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_read_back_exactly(case, tokenizer, tmp_path):
    family, changes = CASES[case]
    folder, out = made(family, changes, tokenizer, tmp_path)
    before, after = read_config(folder), read_config(out)
    assert after == replace(before, name=after.name, initializer_range=after.initializer_range)
    assert torch.equal(logits(out), logits(folder))


def test_quantized_weights_are_read_with_their_rounding(tokenizer, tmp_path):
    folder, out = made("llama", {}, tokenizer, tmp_path, "q8_0")
    gap = (logits(out) - logits(folder)).abs().max()
    assert 0 < gap < 0.3


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_is_read_back(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    folder, out = made("llama", {"num_layers": 1}, tokenizer, tmp_path)
    ours, theirs = (AutoTokenizer.from_pretrained(one) for one in (out, folder))
    for line in ODD_LINES:
        ids = theirs(line)["input_ids"]
        assert ours(line)["input_ids"] == ids, repr(line)
        if tokenizer.decoder or "<" not in line:
            text = theirs.decode(ids) if tokenizer.decoder else line
            assert ours.decode(ids) == text, repr(line)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template


def edited(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert len(old) == len(new)
    assert old in content
    file.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"llama", b"mamba", "general.architecture=mamba is not supported. Give a file with one"),
        (b"llama.rope.freq_base", b"llama.rope.freq_bass", "llama.rope.freq_bass=100.0 is not"),
        (b"llama.block_count", b"llama.block_cound", "llama.block_count is missing"),
        (b"blk.1.ffn_up", b"blk.1.ffn_in", "blk.1.ffn_in.weight: the network has no such tensor"),
        (b"gpt-2", b"gpt-5", "tokenizer.ggml.pre=gpt-5: expected one of gpt-2, smollm"),
        (b"GGUF", b"GGUU", "the file cannot be read"),
    ],
)
def test_what_the_network_lacks_is_refused_by_name(old, new, sentence, tokenizer, tmp_path):
    config = family_config("llama", num_layers=2, rope_scaling={})
    file = write_gguf(make_folder(tmp_path / "model", config, tokenizer))
    edited(file, old, new)
    with pytest.raises(InputError, match=rf"^path=.*{re.escape(sentence)}"):
        import_checkpoint(ImportModelConfig(str(file), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_an_unknown_tokenizer_can_be_replaced(tokenizer, tmp_path):
    folder = make_folder(tmp_path / "model", family_config("llama", num_layers=1), tokenizer)
    file, out = write_gguf(folder), tmp_path / "out"
    edited(file, b"gpt-2", b"gpt-5")
    import_checkpoint(ImportModelConfig(str(file), str(out), tokenizer=str(folder)))
    assert torch.equal(logits(out), logits(folder))
    texts = [(one / "tokenizer.json").read_text() for one in (out, folder)]
    assert texts[0] == texts[1]


def test_both_ends_of_answers_are_read_back(tokenizer, tmp_path):
    folder = make_folder(tmp_path / "model", family_config("llama", num_layers=1), tokenizer)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    import_checkpoint(ImportModelConfig(str(write_gguf(folder)), str(tmp_path / "out")))
    stated = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert stated["eos_token_id"] == [2, 3]
