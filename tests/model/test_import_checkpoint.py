"""Checkpoints of other trainers: converted exactly, or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

from conf.errors import InputError
from model.checkpoint_kinds import KINDS, kind_of
from model.families.from_litgpt import CONFIG, EXPECTED, NAMES, OUTER, WEIGHTS, read_shape
from model.import_checkpoint import ImportModelConfig, import_checkpoint
from model.init import initial_value
from model.network import build_meta
from tests.model.shapes import tiny

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {"architecture": "llama", "sliding_window": None},
    "window": {"architecture": "mistral", "sliding_window": 8},
    "bias": {"architecture": "qwen2", "sliding_window": None, "qkv_bias": True},
    "qk_norm": {"architecture": "qwen3", "sliding_window": None, "qk_norm": True},
}


def config_of(feature):
    return tiny(**FEATURES[feature])


def values(config):
    """Returns weights by the names of the decoder, none of them constant."""
    made = {}
    for number, (name, parameter) in enumerate(build_meta(config).named_parameters()):
        torch.manual_seed(number)
        made[name] = initial_value(name, parameter.shape, config, 0)
        made[name] = made[name] + 0.1 * torch.randn(parameter.shape)
    return made


def write_litgpt(folder, config, weights, **changes):
    """Writes a checkpoint as `litgpt pretrain` does, with the names of its documentation."""
    folder.mkdir(parents=True, exist_ok=True)
    stated = EXPECTED | {
        "name": "mine",
        "block_size": config.max_seq_len,
        "n_layer": config.num_layers,
        "n_embd": config.hidden_size,
        "n_head": config.num_heads,
        "n_query_groups": config.num_kv_heads,
        "head_size": config.head_dim,
        "vocab_size": config.vocab_size - 3,
        "padded_vocab_size": config.vocab_size,
        "intermediate_size": config.intermediate_size,
        "sliding_window_size": config.sliding_window,
        "rope_base": int(config.rope_theta),
        "norm_eps": config.rms_norm_eps,
        "attn_bias": config.qkv_bias,
        "norm_qk": config.qk_norm,
    }
    (folder / CONFIG).write_text(yaml.safe_dump(stated | changes))
    stored = {theirs: weights[ours] for theirs, ours in OUTER.items()}
    for layer in range(config.num_layers):
        of, to = f"layers.{layer}", f"transformer.h.{layer}"
        for theirs, ours in NAMES.items():
            if f"{of}.{ours}.weight" in weights:
                stored[f"{to}.{theirs}.weight"] = weights[f"{of}.{ours}.weight"]
        for kind in ("weight", "bias")[: 1 + config.qkv_bias]:
            parts = [weights[f"{of}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            stored[f"{to}.attn.qkv.{kind}"] = torch.cat(parts)
    torch.save({"model": stored}, folder / WEIGHTS)


@pytest.mark.parametrize("feature", FEATURES)
def test_a_checkpoint_of_litgpt_computes_the_same_in_transformers(tmp_path, feature, capsys):
    from transformers import AutoModelForCausalLM

    config = config_of(feature)
    weights = values(config)
    write_litgpt(tmp_path / "lit", config, weights)
    assert read_shape(tmp_path / "lit") == replace(
        config, name="lit", init="normal", initializer_range=0.02
    )
    import_checkpoint(ImportModelConfig(str(tmp_path / "lit"), str(tmp_path / "out")))
    assert "as " in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = build_meta(config).to_empty(device="cpu")
    ours.load_state_dict(weights)
    tokens = torch.randint(0, config.vocab_size, (2, 24))
    with torch.no_grad():
        expected = ours(tokens)
        found = model(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_tied_head_is_stored_once(tmp_path):
    config = config_of("plain")
    weights = values(config)
    weights["lm_head.weight"] = weights["embed_tokens.weight"]
    write_litgpt(tmp_path / "lit", config, weights)
    import_checkpoint(ImportModelConfig(str(tmp_path / "lit"), str(tmp_path / "out")))
    stated = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stated["tie_word_embeddings"] is True


@pytest.mark.parametrize("key", EXPECTED)
def test_what_the_network_lacks_is_refused_by_name(tmp_path, key):
    config = config_of("plain")
    other = {"norm_class_name": "LayerNorm", "mlp_class_name": "GemmaMLP", "norm_qk_type": "olmo2"}
    expected = EXPECTED[key]
    value = other.get(key, (not expected) if isinstance(expected, bool) else 3)
    write_litgpt(tmp_path / "lit", config, values(config), **{key: value})
    with pytest.raises(InputError, match=f"{key}={value} is not supported"):
        import_checkpoint(ImportModelConfig(str(tmp_path / "lit"), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path):
    config = config_of("plain")
    weights = values(config)
    write_litgpt(tmp_path / "lit", replace(config, num_layers=1), weights)
    stored = yaml.safe_load((tmp_path / "lit" / CONFIG).read_text())
    for layers, said in ((config.num_layers, "has no tensor transformer.h.1"),):
        (tmp_path / "lit" / CONFIG).write_text(yaml.safe_dump(stored | {"n_layer": layers}))
        with pytest.raises(InputError, match=said):
            import_checkpoint(ImportModelConfig(str(tmp_path / "lit"), str(tmp_path / "out")))
    write_litgpt(tmp_path / "lit", config, weights)
    (tmp_path / "lit" / CONFIG).write_text(yaml.safe_dump(stored))
    with pytest.raises(InputError, match="is not part of the model"):
        import_checkpoint(ImportModelConfig(str(tmp_path / "lit"), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


class Trap:
    """An object whose unpickling executes something: it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_state_of_training_in_a_file_is_skipped_and_never_executed(tmp_path):
    """`litgpt pretrain` ends with a file that holds its data loader too."""
    config = config_of("plain")
    weights = values(config)
    write_litgpt(tmp_path / "lit", config, weights)
    stored = torch.load(tmp_path / "lit" / WEIGHTS, weights_only=True)
    rows = torch.utils.data.TensorDataset(torch.arange(3))
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    state = {"train_dataloader": loader, "iter_num": 3, "trap": Trap(tmp_path / "executed")}
    torch.save(stored | state, tmp_path / "lit" / WEIGHTS)
    import_checkpoint(ImportModelConfig(str(tmp_path / "lit"), str(tmp_path / "out")))
    assert not (tmp_path / "executed").exists()
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        found = file.get_tensor("model.norm.weight")
    torch.testing.assert_close(found, weights["norm.weight"], atol=0, rtol=0)
    torch.load(tmp_path / "lit" / WEIGHTS, weights_only=False)
    assert (tmp_path / "executed").exists()  # the trap works


def test_a_damaged_file_is_one_sentence(tmp_path):
    config = config_of("plain")
    write_litgpt(tmp_path / "lit", config, values(config))
    path = tmp_path / "lit" / WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        import_checkpoint(ImportModelConfig(str(tmp_path / "lit"), str(tmp_path / "out")))


def test_pickled_weights_become_safetensors(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    stated = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(stated)
    folder = tmp_path / "old"
    folder.mkdir()
    stated.architectures = ["LlamaForCausalLM"]
    stated.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    import_checkpoint(ImportModelConfig(str(folder), str(tmp_path / "out")))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=0, rtol=0)


FILES = {
    "an export of nanochat": ("meta_000100.json", "model_000100.pt"),
    "a checkpoint of nanoGPT": ("ckpt.pt",),
    "a checkpoint of Megatron-LM": ("latest_checkpointed_iteration.txt", "iter_0000100/common.pt"),
    "a checkpoint of NeMo": ("context/model.yaml", "weights/common.pt"),
    "a checkpoint of OLMo-core": ("config.json", "model_and_optim/.metadata"),
    "a run of Headwater": ("config.yaml", "checkpoints/latest"),
    "a distributed checkpoint of torch": (".metadata", "__0_0.distcp"),
}


def test_every_kind_that_is_refused_has_a_case():
    refused = {kind.noun for kind in KINDS if kind.taken is None}
    assert refused == {*FILES, "a Hugging Face folder"}


@pytest.mark.parametrize("noun", FILES)
def test_the_program_that_wrote_a_checkpoint_is_named(tmp_path, noun):
    for name in FILES[noun]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"this is {noun}"):
        kind_of(tmp_path)


def test_other_paths_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        kind_of(tmp_path / "none")
    with pytest.raises(InputError, match="not a known checkpoint"):
        kind_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="It needs no import"):
        kind_of(tmp_path)
