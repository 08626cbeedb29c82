"""`python -m model import`: a Hugging Face folder from a checkpoint of another trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor

from conf.errors import InputError
from conf.model_card import CardConfig, model_card
from conf.output_kinds import MODEL
from conf.outputs import Output
from conf.tokenizer_folder import (
    ROLES,
    TOKENIZER,
    read_settings,
    read_special_tokens,
    read_template,
)
from model.checkpoint_kinds import GGUF, LITGPT, PICKLED, Kind, kind_of
from model.families import family_named
from model.families import from_litgpt as litgpt
from model.families.folder import hf_config, read_config, save_weights
from model.families.model_files import ModelFiles
from model.gguf.reading import read_gguf
from model.tensors_only import load_tensors


@dataclass
class ImportModelConfig:
    """Configuration of `model import`.

    path: a folder of litgpt (lit_model.pth), a GGUF file, or a Hugging Face folder whose weights
        are pickled. Others are refused with what can be done instead.
    out: the folder to write.
    tokenizer: a folder whose tokenizer the model has; null for that of the checkpoint.
    overwrite: whether to replace `out` if it is a model folder that Headwater made.
    """

    path: str = MISSING
    out: str = MISSING
    tokenizer: str | None = None
    overwrite: bool = False


Tensors = Iterator[tuple[str, Tensor]]
HEAD = "lm_head.weight"
Reader = Callable[[Path, bool], tuple[ModelFiles, Tensors]]
"""Reads a checkpoint, with its own tokenizer or without: its files, and its weights by the names of
Hugging Face."""


def import_checkpoint(config: ImportModelConfig) -> None:
    """Writes the folder `out`, complete or not at all, and prints its shape."""
    path = Path(config.path)
    given = [config.path, *([config.tokenizer] if config.tokenizer else [])]
    output = Output(config.out, MODEL, config.overwrite, given)
    output.check()
    kind = kind_of(path)
    assert kind.taken is not None
    files, weights = READERS[kind.taken](path, config.tokenizer is None)
    if config.tokenizer:
        files = with_tokenizer(files, Path(config.tokenizer))
    with output.folder() as made:
        save_weights(made, weights, None, None)
        files.write(made, card(config.out, kind))
        shape = read_config(made)  # refuses what no family has
    print(
        f"{config.out}: {kind.noun} with {shape.num_layers} layers of {shape.hidden_size}, as "
        f"{family_named(shape.architecture).hf_class}. Continue training with "
        f"init_from={config.out}"
    )
    if files.tokenizer is None:
        print("It has no tokenizer. Give one with tokenizer=<folder> overwrite=true.")


def read_litgpt(path: Path, _: bool) -> tuple[ModelFiles, Tensors]:
    """Returns the files and weights of a checkpoint of litgpt."""
    shape = litgpt.read_shape(path)
    weights = dict(litgpt.read_weights(path, shape))
    if torch.equal(weights["lm_head.weight"], weights["embed_tokens.weight"]):
        shape = replace(shape, tie_embeddings=True)
        del weights["lm_head.weight"]
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    tokenizer = _tokenizer_of(path)
    files = ModelFiles(
        hf_config(shape, _special_ids(path), dtype),
        tokenizer.tokenizer,
        tokenizer.tokenizer_settings,
        tokenizer.template,
    )
    family = family_named(shape.architecture)
    return files, ((family.hf_name(name), value) for name, value in weights.items())


def read_pickled(path: Path, _: bool) -> tuple[ModelFiles, Tensors]:
    """Returns the files and weights of a Hugging Face folder with `pytorch_model*.bin`."""

    def weights() -> Tensors:
        for file in sorted(path.glob("pytorch_model*.bin")):
            yield from load_tensors(file).items()

    read_config(path)
    files = ModelFiles.read(path)
    return files, stored_once(weights(), files.config)


def card(out: str, kind: Kind) -> str:
    """Returns the text of README.md."""
    facts = {"made from": kind.noun}
    about = "A model that was converted with Headwater, to be trained further."
    return model_card(Path(out).name, about, facts, metadata=CardConfig().metadata({}))


READERS: dict[str, Reader] = {LITGPT: read_litgpt, PICKLED: read_pickled, GGUF: read_gguf}


def with_tokenizer(files: ModelFiles, folder: Path) -> ModelFiles:
    """Returns the files with the tokenizer of another folder."""
    if not (folder / TOKENIZER).is_file():
        raise InputError(f"tokenizer={folder}: there is no {TOKENIZER}. Give a folder that has it.")
    other = _tokenizer_of(folder)
    ids = _special_ids(folder)
    return replace(
        files,
        config=files.config | ids,
        generation=files.generation and files.generation | ids,
        tokenizer=other.tokenizer,
        tokenizer_settings=other.tokenizer_settings,
        template=other.template or files.template,
    )


def _tokenizer_of(folder: Path) -> ModelFiles:
    """Returns the tokenizer's files of a folder, which may have no config.json."""
    path = folder / TOKENIZER
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    return ModelFiles({}, text, read_settings(folder), read_template(folder))


def stored_once(weights: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Yields the weights without tables of rotary positions, and without a tied head."""
    for name, value in weights:
        tied = name == HEAD and config.get("tie_word_embeddings")
        if not tied and not name.endswith("rotary_emb.inv_freq"):
            yield name, value


def _special_ids(folder: Path) -> dict[str, int | None]:
    """Returns the ids of the special tokens, as a config.json states them."""
    from tokenizers import Tokenizer

    if not (folder / TOKENIZER).is_file():
        return {}
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    spelled = read_special_tokens(folder)
    return {
        f"{role}_token_id": tokenizer.token_to_id(spelled[role]) if role in spelled else None
        for role in ROLES
        if role != "unk"
    }
