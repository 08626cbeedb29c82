"""Exact parameter counts and FLOPs, against the published models."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conf.entry import CONF_DIR
from model.config import ModelConfig
from model.flops import flops_per_token, matmul_parameters, mean_keys, parameters
from model.network import build_meta

PUBLISHED = {
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
    if name in PUBLISHED:
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
