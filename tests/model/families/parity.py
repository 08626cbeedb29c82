"""Compares a model with its class in transformers: logits, loss and gradients, in and out.

Both sides compute in float32 with eager attention. Ours computes packed documents, and
transformers each document alone.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.families import FAMILIES
from model.families.folder import HFWeights, hf_config, read_config, save_weights
from model.families.model_files import ModelFiles
from model.network import Decoder
from tests.model.shapes import initialize

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
DOCUMENTS = (0, 31, 96, 101, 192)
"""Starts of documents in two packed sequences of 96 tokens: longer and shorter than a window."""
SEQ = 96
LIMITS = {"logits": 1e-5, "loss": 1e-5, "gradients": 1e-4}


class Differences(NamedTuple):
    """Largest relative differences: of the logits and of any gradient by their norms."""

    logits: float
    loss: float
    gradients: float


def perturb(model: nn.Module, seed: int) -> None:
    """Changes norms and biases, which all have the same values at first, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def exported(config: ModelConfig, folder: Path) -> Decoder:
    """Returns a random model, and writes it to a folder as an export does."""
    model = Decoder(config)
    initialize(model, config, 0)
    perturb(model, 3)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config, SPECIAL, "float32")))
    ModelFiles.read(folder).write(folder)
    family = FAMILIES[config.architecture]
    save_weights(folder, iter(model.named_parameters()), torch.float32, family)
    return model


def stock(folder: Path) -> Any:
    """Returns the model of a folder in stock transformers, with all of its weights."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    assert not report["unexpected_keys"]
    assert not set(report["missing_keys"]) - {"lm_head.weight"}
    return model


def imported(folder: Path) -> Decoder:
    """Returns the model of a folder as `init_from` reads it."""
    config = read_config(folder)
    weights = HFWeights(folder, FAMILIES[config.architecture])
    model = Decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.read(name))
    return model


RENAMED = (".self_attn.gate_proj.", ".self_attn.g_proj.")
"""The name of gates of heads in a checkpoint, and in the class that loads it."""


def differences(ours: Decoder, theirs: Any) -> Differences:
    """Returns how far a decoder is from a stock model, on packed and on whole sequences."""
    tokens = torch.randint(
        3, ours.config.vocab_size, (2, SEQ), generator=torch.Generator().manual_seed(1)
    )
    whole = (0, SEQ, 2 * SEQ)
    found = [_on(ours, theirs, tokens, starts) for starts in (DOCUMENTS, whole)]
    return Differences(*map(max, zip(*found, strict=True)))


def _on(ours: Decoder, theirs: Any, tokens: Tensor, starts: tuple[int, ...]) -> Differences:
    documents = [tokens.flatten()[a:b] for a, b in itertools.pairwise(starts)]
    labels = torch.cat([F.pad(d[1:], (0, 1), value=-100) for d in documents])
    padded = torch.tensor([*starts, *[tokens.numel()] * 3], dtype=torch.int32)
    logits = ours(tokens, cu_seqlens=padded)
    expected = torch.cat([theirs(document[None]).logits[0] for document in documents])
    ours.zero_grad()
    theirs.zero_grad()
    loss = ours(tokens, labels.view(tokens.shape), padded)
    assert isinstance(loss, Tensor)
    loss.backward()
    stated = F.cross_entropy(expected, labels, reduction="sum")
    stated.backward()
    gradients = dict(theirs.named_parameters())
    stored_name: Callable[[str], str] = FAMILIES[ours.config.architecture].hf_name

    def hf_name(name: str) -> str:
        return stored_name(name).replace(*RENAMED)

    return Differences(
        _distance(logits.flatten(0, 1), expected),
        abs(loss.item() / stated.item() - 1),
        max(
            _distance(parameter.grad, gradients[hf_name(name)].grad)
            for name, parameter in ours.named_parameters()
        ),
    )


def _distance(found: Any, expected: Any) -> float:
    """Returns the distance of two tensors relative to the norm of the second."""
    return (torch.dist(found, expected) / expected.norm()).item()


def on_export(config: ModelConfig, folder: Path) -> Differences:
    """Returns how far an exported model is from what transformers loads."""
    ours = exported(config, folder)
    theirs = stock(folder)
    assert type(theirs).__name__ == FAMILIES[config.architecture].hf_class
    return differences(ours, theirs)


def on_import(config: ModelConfig, folder: Path) -> Differences:
    """Returns how far the import of a model that transformers made is from it.

    The folder is written by `save_pretrained` of a stock model with the shape of `config`.
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config, SPECIAL, "float32")))
    torch.manual_seed(5)
    settings = transformers.AutoConfig.from_pretrained(folder, attn_implementation="eager")
    theirs = getattr(transformers, FAMILIES[config.architecture].hf_class)(settings)
    perturb(theirs, 7)
    theirs.save_pretrained(folder)
    return differences(imported(folder), theirs)
