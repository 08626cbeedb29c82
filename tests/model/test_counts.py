"""Exact parameter counts and FLOPs, against the published models."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conf.entry import CONF_DIR
from model.config import ModelConfig
from model.flops import flops_per_token, matmul_parameters, mean_keys, parameters
from model.network import build_meta
from tests.model.families.published import PUBLISHED as OF_FAMILIES

PUBLISHED = {
    **{name: count for name, (count, _) in OF_FAMILIES.items()},
    "gemma3_1b": 999_885_952,
    "gemma3_270m": 268_098_176,
    "olmo2_1b": 1_484_916_736,
    "olmo3_7b": 7_298_011_136,
    "danube_1_8b": 1_831_201_280,
    "danube2_1_8b": 1_831_201_280,
    "danube3_500m": 513_590_784,
    "danube3_4b": 3_961_839_360,
    "mistral_7b": 7_241_732_096,
    "tinyllama_1_1b": 1_100_048_384,
}
ALL = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))


def load(name: str) -> ModelConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        loaded = compose(f"model/{name}").model
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), loaded))
    assert isinstance(config, ModelConfig)
    return config


@pytest.mark.parametrize("name", ALL)
def test_counted_parameters_are_those_of_the_network(name):
    config = load(name)
    built = sum(parameter.numel() for parameter in build_meta(config).parameters())
    assert parameters(config) == built
    if not name.startswith(("demo_", "small_")):
        assert built == PUBLISHED[name]


def test_small_models_are_as_large_as_their_names_say():
    for name in ("small_15m", "small_50m", "small_150m", "small_350m"):
        millions = float(name.removeprefix("small_").removesuffix("m"))
        assert parameters(load(name)) / 1e6 == pytest.approx(millions, rel=0.15)


def test_tied_embeddings_are_counted_once():
    config = load("small_15m")
    config.tie_embeddings = True
    assert parameters(config) == sum(p.numel() for p in build_meta(config).parameters())


def test_danube_matrix_products():
    assert matmul_parameters(load("danube_1_8b")) == 1_749_155_840
    assert matmul_parameters(load("danube3_500m")) == 464_388_096
    assert matmul_parameters(load("danube3_4b")) == 3_838_771_200


@pytest.mark.parametrize(
    ("seq_len", "gigaflops"), [(2048, 11.250), (4096, 12.005), (8192, 12.760), (16384, 13.137)]
)
def test_danube_flops_per_token(seq_len, gigaflops):
    assert flops_per_token(load("danube_1_8b"), seq_len) / 1e9 == pytest.approx(gigaflops, abs=1e-3)


@pytest.mark.parametrize(("seq_len", "window"), [(1, None), (7, None), (64, 1), (64, 9), (9, 64)])
def test_mean_keys_counts_the_mask(seq_len, window):
    position = torch.arange(seq_len)
    distance = position[:, None] - position[None, :]
    seen = (distance >= 0) & (distance < (window or seq_len))
    assert mean_keys(seq_len, window) == pytest.approx(seen.sum().item() / seq_len)


# H2O-Danube-1.8B by section 3 of its report (arXiv 2401.16818): 292.7k tokens/s on 8 H100, 70% of
# the tokens at 2048 and 10% each at 4096, 8192 and 16384; peaks of the H100 SXM data sheet.
TOKENS_PER_SECOND = 292.7e3 / 8
SHARES = {2048: 0.7, 4096: 0.1, 8192: 0.1, 16384: 0.1}
BF16, FP8 = 989.4e12, 1978.9e12


def mean_flops(keys_of):
    danube = load("danube_1_8b")
    return sum(
        share * flops_per_token(danube, seq_len, keys_of(seq_len))
        for seq_len, share in SHARES.items()
    )


@pytest.mark.parametrize(
    ("seq_len", "no_window", "not_causal"),
    [
        (2048, 11.250, 12.005),
        (4096, 12.005, 13.515),
        (8192, 13.515, 16.535),
        (16384, 16.535, 22.575),
    ],
)
def test_danube_flops_per_token_by_other_conventions(seq_len, no_window, not_causal):
    danube = load("danube_1_8b")
    found = [
        flops_per_token(danube, seq_len, keys) / 1e9
        for keys in (mean_keys(seq_len, None), float(seq_len))
    ]
    assert found == pytest.approx([no_window, not_causal], abs=1e-3)


@pytest.mark.parametrize(
    ("keys_of", "gigaflops", "of_bf16", "of_fp8"),
    [
        (lambda seq_len: 0.0, 10.495, 0.388, 0.194),
        (lambda seq_len: mean_keys(seq_len, 4096), 11.665, 0.431, 0.216),
        (lambda seq_len: float(min(seq_len, 4096)), 12.458, 0.461, 0.230),
        (float, 13.666, 0.505, 0.253),
    ],
    ids=["6N only", "causal and window exact", "not causal, windowed", "not causal, no window"],
)
def test_danube_mfu_of_its_own_run(keys_of, gigaflops, of_bf16, of_fp8):
    flops = mean_flops(keys_of)
    assert flops / 1e9 == pytest.approx(gigaflops, abs=2e-3)
    assert flops * TOKENS_PER_SECOND / BF16 == pytest.approx(of_bf16, abs=6e-4)
    assert flops * TOKENS_PER_SECOND / FP8 == pytest.approx(of_fp8, abs=6e-4)


def test_tinyllama_mfu_as_it_was_claimed():
    """56% at 24k tokens/s on an A100, not causal (github.com/jzhang38/TinyLlama); exact: 52.0%."""
    tinyllama = load("tinyllama_1_1b")
    claimed = flops_per_token(tinyllama, 2048, 2048) * 24e3 / 312e12
    assert claimed == pytest.approx(0.563, abs=1e-3)
    assert flops_per_token(tinyllama, 2048) * 24e3 / 312e12 == pytest.approx(0.520, abs=1e-3)


@pytest.mark.parametrize(
    ("model", "seq_len", "thousands"),
    [
        ("danube_1_8b", 2048, 35.2),
        ("danube3_500m", 2048, 128),
        ("danube3_500m", 8192, 99),
        ("danube3_4b", 2048, 16.4),
        ("danube3_4b", 8192, 14.4),
    ],
)
def test_tokens_per_second_at_40_percent(model, seq_len, thousands):
    found = 0.4 * BF16 / flops_per_token(load(model), seq_len) / 1e3
    assert found == pytest.approx(thousands, rel=5e-3)
