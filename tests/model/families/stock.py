"""Compares a decoder with the stock class of `transformers` that its export loads as."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from model.config import ModelConfig
from model.families import FAMILIES
from model.families.folder import HFWeights, hf_config, read_config, save_weights
from model.families.model_files import ModelFiles
from model.network import Decoder
from tests.model.shapes import initialize

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
STARTS = [0, 5, 43, 64, 110, 192]
"""Starts of documents in two packed sequences of 96 tokens; the third is longer than windows."""


def batch(vocab_size: int, starts: list[int]) -> tuple[Tensor, Tensor]:
    """Two sequences of tokens, and labels with none for the last token of a document."""
    size = 2, starts[-1] // 2
    tokens = torch.randint(0, vocab_size, size, generator=torch.Generator().manual_seed(1))
    labels = tokens.flatten().roll(-1)
    labels[torch.tensor([*starts[1:], size[1]]) - 1] = -100
    return tokens, labels.view(size)


def assert_agree(ours: Decoder, theirs: Any, tolerance: float = 1e-5) -> None:
    """Logits of packed documents are those of each alone; so are loss and gradients."""
    starts = sorted({*STARTS, STARTS[-1] // 2})
    tokens, labels = batch(ours.config.vocab_size, starts)
    documents = torch.tensor(starts, dtype=torch.int32)
    alone = [
        theirs(tokens.flatten()[None, start:end]).logits[0]
        for start, end in itertools.pairwise(starts)
    ]
    expected = torch.cat(alone)
    close(ours(tokens, cu_seqlens=documents).flatten(0, 1), expected, "logits", tolerance)
    loss = ours(tokens, labels, documents)
    assert isinstance(loss, Tensor)
    stock = F.cross_entropy(expected, labels.flatten(), reduction="sum")
    close(loss, stock, "loss", tolerance)
    ours.zero_grad()
    theirs.zero_grad()
    loss.backward()
    stock.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    family = FAMILIES[ours.config.architecture]
    for name, parameter in ours.named_parameters():
        close(parameter.grad, gradients[family.hf_name(name)], name, 10 * tolerance)


def close(found: Tensor | None, expected: Tensor | None, what: str, tolerance: float) -> None:
    """Holds the distance of two tensors against the size of the second."""
    assert found is not None
    assert expected is not None
    assert torch.dist(found, expected) < tolerance * expected.norm(), what


@torch.no_grad()
def perturb_norms(model: nn.Module) -> None:
    """Changes the weights of norms, whose initial values would hide that one is not there."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def export(config: ModelConfig, folder: Path) -> Decoder:
    """Returns a random decoder, and writes it as a folder that `transformers` loads."""
    model = Decoder(config)
    initialize(model, config, 0)
    perturb_norms(model)
    (folder / "config.json").write_text(json.dumps(hf_config(config, SPECIAL, "float32")))
    family = FAMILIES[config.architecture]
    save_weights(folder, iter(model.named_parameters()), torch.float32, family)
    return model


def load_stock(folder: Path) -> Any:
    """Returns the stock model of a folder, whose tensors are exactly those of the class."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    model, report = loaded
    assert not report["unexpected_keys"]
    assert not set(report["missing_keys"]) - {"lm_head.weight"}
    return model


def assert_exports(config: ModelConfig, folder: Path, stock: type) -> Any:
    """An export is the stock model, and is read as it was written. Returns the stock model."""
    ours = export(config, folder)
    theirs = load_stock(folder)
    assert type(theirs) is stock
    assert_agree(ours, theirs)
    again = read_config(folder)
    config.name = again.name
    assert again == config
    return theirs


def assert_imports(theirs: Any, folder: Path) -> ModelConfig:
    """A stock model is read as the same network, in both forms of its config.json."""
    perturb_norms(theirs)
    theirs.save_pretrained(folder)
    config = read_config(folder)
    weights = HFWeights(folder, FAMILIES[config.architecture])
    ours = Decoder(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(weights.read(name))
    assert_agree(ours, theirs)
    ModelFiles.read(folder).write(folder)
    assert read_config(folder) == config
    fields = json.loads((folder / "config.json").read_text())
    fields.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps(fields))
    assert read_config(folder) == config, "without the fields of version 5"
    return config
