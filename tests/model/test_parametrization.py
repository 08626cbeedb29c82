"""CompleteP: what it scales, and what an export contains of it (I5)."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from conf.errors import InputError
from model.config import ModelConfig
from model.families import family_named
from model.families.folder import HFWeights, hf_config, read_config, save_weights
from model.folding import folded, unfolded
from model.network import Decoder
from model.parametrization import STANDARD, describe_parametrization, parametrization_of
from tests.model.families.cases import case_of
from tests.model.shapes import initialize, tiny

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BASE = {"parametrization": "completep", "base_hidden_size": 36, "base_num_layers": 3}
"""A base shape whose multipliers are not powers of two."""
EXPORTED = [
    ("llama", "untied", {}),
    ("mistral", "tied", {}),
    ("qwen2", "windows and YaRN", {"qkv_bias": True, "base_head_dim": 6}),
    ("qwen3", "tied", {"base_head_dim": 6}),
    ("smollm3", "layers without positions, YaRN", {"base_head_dim": 6}),
    ("olmo2", "untied", {"base_head_dim": 6}),
    ("olmo3", "windows in three of four layers", {}),
    ("lfm3", "gated heads, tied, one key", {}),
]


def with_base(config: ModelConfig, **changes) -> ModelConfig:
    return ModelConfig(**{**vars(config), **BASE, **changes})


def weights_at_random(config: ModelConfig) -> Decoder:
    """Returns a decoder whose norms and biases are not at their initial values either."""
    model = Decoder(config)
    initialize(model, config, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(("family", "case", "changes"), EXPORTED)
def test_an_export_computes_the_same_in_transformers(family, case, changes, tmp_path):
    config = with_base(case_of(family, case), initializer_range=0.15, **changes)
    scales = parametrization_of(config)
    assert scales.width not in (1.0, 2.0, 4.0)
    assert scales.depth == 4 / 3
    model = weights_at_random(config)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config, SPECIAL, "float32")))
    weights = ((name, folded(name, p, config)) for name, p in model.named_parameters())
    save_weights(tmp_path, weights, torch.float32, family_named(family))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    tokens = torch.randint(
        0, config.vocab_size, (2, 70), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        logits, expected = model(tokens), theirs(tokens).logits
        assert (logits - expected).abs().max() < 1e-5
        # Without the multipliers, the same weights compute something else.
        plain = Decoder(case_of(family, case))
        plain.load_state_dict(model.state_dict())
        assert (plain(tokens) - expected).abs().max() > 0.1

    # The folder states no parametrization. Its weights are unfolded if a run continues it.
    continued = Decoder(config)
    stored = HFWeights(tmp_path, family_named(family))
    assert parametrization_of(read_config(tmp_path)) == STANDARD
    with torch.no_grad():
        for name, parameter in continued.named_parameters():
            parameter.copy_(unfolded(name, stored.read(name), config))
        for (name, ours), before in zip(
            continued.named_parameters(), model.parameters(), strict=True
        ):
            torch.testing.assert_close(ours, before, rtol=2e-7, atol=0, msg=name)


def test_at_the_base_shape_nothing_changes():
    plain = tiny(init="scaled_residual", qk_norm=True, architecture="qwen3", sliding_window=None)
    shape = {"base_hidden_size": 96, "base_num_layers": 3, "base_head_dim": 24}
    base = ModelConfig(**{**vars(plain), "parametrization": "completep", **shape})
    tokens = torch.arange(64).reshape(2, 32)
    losses, gradients = [], []
    for config in (plain, base):
        model = Decoder(config)
        initialize(model, config, 0)
        loss = model(tokens, tokens)
        loss.backward()
        losses.append(loss)
        gradients.append([p.grad for p in model.parameters()])
    assert torch.equal(*losses)
    assert all(map(torch.equal, *gradients))


def test_scales_of_the_initial_values():
    config = tiny(
        init="scaled_residual",
        **{"parametrization": "completep", "base_hidden_size": 24, "base_num_layers": 1},
    )
    model = Decoder(config)
    initialize(model, config, 0)
    got = {
        name: float(p.detach().std()) / config.initializer_range
        for name, p in model.named_parameters()
    }
    assert got["embed_tokens.weight"] == pytest.approx(1, rel=0.03)
    assert got["lm_head.weight"] == pytest.approx(1, rel=0.03)
    for layer in range(3):
        assert got[f"layers.{layer}.self_attn.q_proj.weight"] == pytest.approx(1 / 2, rel=0.03)
        # scaled_residual divides by the depth of the base model, since the branch is divided too.
        down = got[f"layers.{layer}.mlp.down_proj.weight"]
        assert down == pytest.approx(1 / 2 / math.sqrt(2), rel=0.03)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"parametrization": "mup"}, "model.parametrization=mup"),
        ({"parametrization": "completep"}, "model.base_hidden_size=null"),
        ({**BASE, "base_num_layers": None}, "model.base_num_layers=null"),
        ({**BASE, "base_head_dim": 0}, "model.base_head_dim=0: expected 1 or more"),
        ({"base_num_layers": 2}, "model.base_num_layers=2: only model.parametrization=completep"),
    ],
)
def test_impossible_base_shapes_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny(**changes)


def test_features_that_depend_on_the_width_are_refused():
    with pytest.raises(InputError, match=r"model\.scale_embeddings=true: not supported"):
        with_base(case_of("gemma3_text", "untied"))


def test_it_says_which_base():
    assert describe_parametrization(tiny()) == "standard"
    assert describe_parametrization(tiny(**BASE)) == (
        "completep, base of 3 layers of 36 (width times 2.667, depth times 1)"
    )
