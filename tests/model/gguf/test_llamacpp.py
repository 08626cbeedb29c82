"""llama.cpp computes from a GGUF file what transformers computes from the folder."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from eval.chat.llamacpp import EXACT, LlamaCpp
from model.families import FAMILIES
from model.gguf.metadata import context_length
from tests.model.families.cases import GEMMA3, LLAMA3, OLMO3, YARN
from tests.model.families.stock import load_stock
from tests.model.gguf.folders import (
    ODD_LINES,
    TOKENIZERS,
    byte_level,
    family_config,
    make_folder,
    stock_log_probabilities,
    write_gguf,
)

pytest.importorskip("gguf", reason="gguf is not installed (extra gguf)")
pytest.importorskip("xllamacpp", reason="xllamacpp is not installed (extra gguf)")

pytestmark = pytest.mark.slow
ONE_THREAD = [*EXACT, "--threads", "1"]
OWN_FACTOR = {"rope_scaling": {**YARN["rope_scaling"], "attention_factor": 1.3}}
CASES = {
    "llama": LLAMA3,
    "mistral": {"head_dim": 20, **YARN},
    "qwen2": {"num_kv_heads": 1, "num_heads": 6},
    "qwen3": {**YARN, **OWN_FACTOR},
    "olmo2": {"tie_embeddings": True},
    "olmo3": {**OLMO3, **YARN, "local_rope_theta": 100.0},
    "gemma3_text": {**GEMMA3, "query_pre_attn_scalar": 40.0, "logit_softcap": 3.0},
    "smollm3": {"rope_pattern": "RRRN", "rope_scaling": {"type": "linear", "factor": 3.0}},
}
"""Changes of each family's model: what its graph has beyond the plain one."""


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.mark.parametrize("family", CASES)
def test_probabilities_are_those_of_transformers(family, tokenizer, tmp_path, capsys):
    config = family_config(family, **CASES[family])
    folder = make_folder(tmp_path / "model", config, tokenizer)
    graph = FAMILIES[family].gguf(vars(config))
    context = context_length(config, graph)
    has_window = config.sliding_window is not None
    assert context == (24 if has_window and not graph.has_windows else 512)
    with LlamaCpp(write_gguf(folder), *ONE_THREAD) as found:
        ids = random.Random(1).choices(range(4, 600), k=min(80, context))
        expected = stock_log_probabilities(folder, ids)
        # llama.cpp looks GELU up in a table of float16.
        close = 1e-4 if config.activation == "silu" else 0.01
        assert found.log_probabilities(ids) == pytest.approx(expected, abs=close)
    assert ("no sliding window: the context length is 24" in capsys.readouterr().out) == (
        context == 24
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_transformers(name, tmp_path, capsys):
    config = family_config("llama", num_layers=1)
    folder = make_folder(tmp_path / "model", config, TOKENIZERS[name]())
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(ODD_LINES) > 100
    with LlamaCpp(write_gguf(folder), *ONE_THREAD) as found:
        for line in ODD_LINES:
            if "\0" not in line:  # ends a text in llama.cpp's server
                assert found.tokenize(line) == theirs(line)["input_ids"], repr(line)
        assert found.tokenize("Hi", with_ends=True) == theirs("Hi")["input_ids"]
    said = name.split()[0].replace("pieces", "default")
    assert f"pre-tokenizer {said}," in capsys.readouterr().out


def test_a_chat_is_that_of_transformers(tokenizer, tmp_path):
    folder = make_folder(tmp_path / "model", family_config("gemma3_text"), tokenizer)
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [
        {"role": "user", "content": "What's 12 + 30?"},
        {"role": "assistant", "content": "42."},
        {"role": "user", "content": " Grüße, 日本語 "},
    ]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = theirs(rendered)["input_ids"]
    with torch.no_grad():
        answer = (
            load_stock(folder)
            .generate(torch.tensor([ids]), max_new_tokens=24, min_new_tokens=24, do_sample=False)[
                0, len(ids) :
            ]
            .tolist()
        )
    with LlamaCpp(write_gguf(folder), *ONE_THREAD) as found:
        assert found.rendered(messages) == rendered
        assert found.tokenize(rendered) == ids
        assert found.greedy(ids, 24) == answer


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0", "q4_0"])
def test_quantized_weights_differ_by_their_rounding(type, tokenizer, tmp_path):
    """llama.cpp's probabilities are those of transformers with the weights of the file."""
    import gguf
    from safetensors.torch import load_file, save_file

    config = family_config("olmo2", intermediate_size=131)
    folder = make_folder(tmp_path / "model", config, tokenizer)
    file = write_gguf(folder, type)
    ids = random.Random(1).choices(range(4, 600), k=40)
    plain = stock_log_probabilities(folder, ids)
    stored = load_file(folder / "model.safetensors")
    types = {}
    for tensor in gguf.GGUFReader(file).tensors:
        types[tensor.name] = tensor.tensor_type.name.lower()
        name = names(config)[tensor.name]
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        stored[name] = values.reshape(stored[name].shape)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    rounded = stock_log_probabilities(folder, ids)
    with LlamaCpp(file, *ONE_THREAD) as found:
        got = found.log_probabilities(ids)
    # llama.cpp also rounds activations, to 8 bits next to quantized weights.
    close = {"f16": 0.02, "bf16": 0.1, "q8_0": 0.2, "q4_0": 0.2}[type]
    assert got == pytest.approx(rounded, abs=close)
    assert largest(got, plain) > 0
    assert types["blk.0.attn_q.weight"] == type
    assert types["token_embd.weight"] == {"q4_0": "q8_0"}.get(type, type)
    assert types["blk.0.ffn_down.weight"] == (type if type == "bf16" else "f16")
    assert types["blk.0.post_attention_norm.weight"] == "f32"


def largest(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def names(config) -> dict[str, str]:
    """Returns the names in the folder by those in the file."""
    from model.gguf.tensors import entries

    family = FAMILIES[config.architecture]
    found = entries(config, family.gguf(vars(config)), "f32")
    return {entry.name: family.hf_name(entry.source) for entry in found}


def test_a_file_that_is_cut_off_is_refused(tokenizer, tmp_path: Path):
    from conf.errors import RunAborted

    folder = make_folder(tmp_path / "model", family_config("llama", num_layers=1), tokenizer)
    file = write_gguf(folder)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(RunAborted, match=r"llama\.cpp does not load the file"):
        LlamaCpp(file)


def test_eval_chat_answers_with_llamacpp(tokenizer, tmp_path, capsys, monkeypatch):
    import io

    from conf.errors import InputError
    from eval.chat.chat import ChatConfig, chat

    folder = make_folder(tmp_path / "model", family_config("llama"), tokenizer)
    file = write_gguf(folder)
    messages = [{"role": "user", "content": "Hi"}]
    with LlamaCpp(file) as found:
        ids = found.tokenize(found.rendered(messages))
        answer = found.ask("/detokenize", {"tokens": found.greedy(ids, 8, ignore_eos=False)})
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    chat(ChatConfig(str(file), max_new_tokens=8, temperature=0.0, repetition_penalty=1.0))
    assert capsys.readouterr().out.strip() == answer["content"].strip()
    with pytest.raises(InputError, match=r"^model=none\.gguf: the file does not exist"):
        chat(ChatConfig(model="none.gguf"))
