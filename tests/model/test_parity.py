"""I5: logits and gradients agree with stock transformers in float32."""

import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from model.config import ModelConfig
from model.families import family_named
from model.families.folder import HFWeights, hf_config, read_config, save_weights
from model.network import Decoder
from tests.model.shapes import initialize, tiny

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


CASES = {
    "window shorter than the sequence": tiny(),
    "no window": tiny(sliding_window=None),
    "window of one": tiny(sliding_window=1),
    "head dim 80": tiny(hidden_size=160, num_heads=2, num_kv_heads=1),
    "head dim 96": tiny(hidden_size=288, num_heads=3, num_kv_heads=1),
    "head dim 120": tiny(hidden_size=360, num_heads=3, num_kv_heads=3),
    "seven queries a key": tiny(num_heads=7, num_kv_heads=1, head_dim=16),
    "nine heads, three keys": tiny(num_heads=9, num_kv_heads=3, head_dim=24),
    "llama": tiny(architecture="llama", sliding_window=None, rope_theta=100_000.0),
    "tied": tiny(tie_embeddings=True),
}


def export(config: ModelConfig, folder, seed: int = 0) -> Decoder:
    model = Decoder(config)
    initialize(model, config, seed)
    (folder / "config.json").write_text(json.dumps(hf_config(config, SPECIAL, "float32")))
    family = family_named(config.architecture)
    save_weights(folder, iter(model.named_parameters()), torch.float32, family)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_agree_with_transformers(case, tmp_path):
    config = CASES[case]
    ours = export(config, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    tokens = torch.randint(
        0, config.vocab_size, (2, 96), generator=torch.Generator().manual_seed(1)
    )

    logits, expected = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)

    labels = torch.cat((tokens[:, 1:], torch.full((2, 1), -100)), dim=1)
    loss = ours(tokens, labels=labels)
    expected_loss = torch.nn.functional.cross_entropy(
        expected.flatten(0, 1), labels.flatten(), reduction="sum"
    )
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected_loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    hf_name = family_named(config.architecture).hf_name
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[hf_name(name)], rtol=2e-3, atol=2e-3, msg=name
        )


def test_packed_documents_equal_documents_alone():
    config = tiny()
    model = Decoder(config)
    initialize(model, config, 0)
    starts = [0, 5, 33, 64, 96, 128]  # two sequences of 64 tokens, documents inside both
    tokens = torch.randint(
        0, config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(2)
    )
    cu_seqlens = torch.tensor([*starts, 128, 128], dtype=torch.int32)
    packed = model(tokens, cu_seqlens=cu_seqlens).flatten(0, 1)
    flat = tokens.flatten()
    for start, end in itertools.pairwise(starts):
        alone = model(flat[None, start:end])[0]
        torch.testing.assert_close(packed[start:end], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [1, 8, 63])
def test_a_window_of_w_sees_w_keys(window):
    from model.attention.mask import attention_mask

    (block,) = attention_mask("sdpa", 1, 64, window, None, torch.device("cpu")).blocks
    assert block.dense_mask is not None
    seen = (block.dense_mask[0, 0] == 0).sum(-1)
    assert seen.tolist() == [min(i + 1, window) for i in range(64)]


def test_import_reads_what_export_wrote(tmp_path):
    config = tiny(tie_embeddings=False, head_dim=24)
    model = export(config, tmp_path)
    again = read_config(tmp_path)
    config.name = again.name
    assert again == config
    weights = HFWeights(tmp_path, family_named("mistral"))
    for name, parameter in model.named_parameters():
        assert torch.equal(weights.read(name), parameter)


def test_import_of_what_transformers_saved(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    hf = MistralForCausalLM(
        MistralConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
            sliding_window=8,
        )
    )
    hf.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    weights = HFWeights(tmp_path, family_named("mistral"))
    model = Decoder(config)
    model.load_state_dict({name: weights.read(name) for name, _ in model.named_parameters()})
    tokens = torch.arange(40)[None]
    torch.testing.assert_close(model(tokens), hf(tokens).logits, rtol=1e-4, atol=1e-4)
