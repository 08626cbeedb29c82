"""`python -m model gguf` writes a file completely or not at all, and refuses by name."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from conf.errors import InputError, RunAborted
from model.gguf import command
from model.gguf.command import GGUFConfig, gguf
from tests.model.families.cases import GEMMA3, LLAMA3, OWN_YARN, YARN
from tests.model.gguf.folders import (
    byte_level,
    family_config,
    make_folder,
    split,
    trained,
    write_gguf,
    write_tokenizer,
)

pytest.importorskip("gguf", reason="gguf is not installed (extra gguf)")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture
def folder(tokenizer, tmp_path):
    return make_folder(tmp_path / "model", family_config("mistral", num_layers=1), tokenizer)


def write(folder, **settings):
    gguf(GGUFConfig(model=str(folder), out=str(folder.parent / "out.gguf"), **settings))


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("lfm3", {}, "model.architecture=lfm3: llama.cpp does not have this family"),
        ("qwen2", {"head_dim": 32}, "model.head_dim=32: the graph 'qwen2' of llama.cpp has heads"),
        ("olmo2", LLAMA3, "model.rope_scaling.type=llama3: the graph 'olmo2'"),
        ("llama", OWN_YARN, "model.rope_scaling.truncate=False: llama.cpp always rounds"),
        (
            "llama",
            {"rope_scaling": {**YARN["rope_scaling"], "beta_fast": 8.0}},
            "model.rope_scaling.beta_fast=8.0: llama.cpp does not read it from files",
        ),
        ("gemma3_text", {**GEMMA3, **YARN}, "model.rope_scaling.type=yarn: the graph 'gemma3'"),
        (
            "gemma3_text",
            {**GEMMA3, "window_pattern": "GLLL"},
            "model.window_pattern=GLLL: the graph 'gemma3' of llama.cpp has full attention only",
        ),
        ("smollm3", {"rope_pattern": "RN"}, "model.rope_pattern=RN: the graph 'smollm3'"),
    ],
)
def test_models_that_llamacpp_computes_otherwise_are_refused(
    family, changes, sentence, tokenizer, tmp_path
):
    folder = make_folder(tmp_path / "model", family_config(family, **changes), tokenizer)
    with pytest.raises(InputError, match=re.escape(sentence)):
        write(folder)
    assert not (tmp_path / "out.gguf").exists()


def lowercase():
    return byte_level(normalizer=normalizers.Lowercase())


def whitespace():
    tokenizer = Tokenizer(models.BPE(unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return trained(tokenizer, 500)


def unigram():
    return Tokenizer(models.Unigram([("<pad>", 0.0), ("<s>", -1.0), ("</s>", -1.0)], 0))


def greedy_token():
    from tokenizers import AddedToken

    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lowercase, "the normalizer Lowercase"),
        (whitespace, "the pre-tokenizer Whitespace"),
        (unigram, "a model of type Unigram"),
        (greedy_token, "the token '<mask>' with lstrip=true"),
        (lambda: byte_level(split(r"\d+")), r"the pre-tokenizer splits by \d+"),
        (lambda: byte_level(ignore_merges=True), "takes words that are tokens without merging"),
    ],
)
def test_tokenizers_that_llamacpp_lacks_are_refused(make, reason, folder):
    write_tokenizer(folder, make())
    with pytest.raises(InputError, match=rf"^tokenizer.json: .*{re.escape(reason)}.* which llama"):
        write(folder)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tokenizer, tmp_path):
    config = family_config("llama", vocab_size=590)
    folder = make_folder(tmp_path / "model", config, tokenizer)
    with pytest.raises(InputError, match="but the model has 590 rows"):
        write(folder)


def test_nothing_half_written_stays(folder, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(command, "arrays", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write(folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_values_that_a_type_cannot_hold_are_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.self_attn.q_proj.weight"][3, 5] = 1e5
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"^type=f16: blk.0.attn_q.weight has values up to 100000"):
        write(folder, type="f16")
    assert torch.isfinite(torch.tensor(1e5).bfloat16())
    write(folder, type="bf16")


def test_k_quants_are_made_by_llama_quantize(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InputError, match=r"^type=q4_k_m: K-quants need .* not on PATH"):
        write(folder, type="q4_k_m")
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n[ "$3" = Q4_K_M ] && /bin/cp "$1" "$2"\necho broken >&2; exit $?'
    )
    program.chmod(0o755)
    write(folder, type="q4_k_m")
    assert "q4_k_m" in capsys.readouterr().out
    assert (tmp_path / "out.gguf").read_bytes() == write_gguf(folder).read_bytes()
    program.write_text("#!/bin/sh\necho broken >&2; exit 3")
    with pytest.raises(RunAborted, match=r"^type=q4_k_m: llama-quantize exited with code 3"):
        write(folder, type="q4_k_m", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("bin", "model", "model.f32.gguf", "out.gguf"),
    }


def test_the_file_names_its_origin_and_both_ends(folder):
    import json

    from gguf import GGUFReader

    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 3]}))
    fields = GGUFReader(write_gguf(folder, "q8_0")).fields
    values = {
        name: fields[f"tokenizer.ggml.{name}"].contents()
        for name in ("bos_token_id", "eos_token_id", "eot_token_id", "padding_token_id")
    }
    assert list(values.values()) == [1, 2, 3, 0]
    assert fields["headwater.model"].contents() == "model"
    assert not fields["tokenizer.ggml.add_bos_token"].contents()
    assert fields["llama.context_length"].contents() == 24
