"""Tells by its files which program wrote a checkpoint, and what can be taken from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conf.errors import InputError

LITGPT, PICKLED, GGUF = "litgpt", "pickled", "gguf"
"""Kinds that can be imported."""


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint.

    Attributes:
        noun: Its name with its article.
        is_one: Returns whether a path is one.
        taken: Name of the kind if it can be imported, else None.
        advice: For the others, why not, and what to do instead.
    """

    noun: str
    is_one: Callable[[Path], bool]
    taken: str | None = None
    advice: str = ""


def _has(*patterns: str) -> Callable[[Path], bool]:
    """Returns a predicate that is True if a folder has a file for each pattern."""
    return lambda path: path.is_dir() and all(any(path.glob(pattern)) for pattern in patterns)


def _is_hugging_face(path: Path) -> bool:
    try:
        return "model_type" in json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False


KINDS = (
    Kind("a GGUF file", lambda path: path.is_file() and path.suffix == ".gguf", GGUF),
    Kind("a checkpoint of litgpt", _has("lit_model.pth", "model_config.yaml"), LITGPT),
    Kind(
        "a Hugging Face folder with pickled weights",
        lambda path: _is_hugging_face(path) and _has("pytorch_model*.bin")(path),
        PICKLED,
    ),
    Kind(
        "a Hugging Face folder",
        _is_hugging_face,
        advice="It needs no import: give it to init_from, finetune or eval as it is.",
    ),
    Kind(
        "an export of nanochat",
        _has("meta_*.json", "model_*.pt"),
        advice="Its network (squared ReLU, norms without weights, bounded logits, value "
        "embeddings) is none of the classes of docs/families.md. Its text can be taken: "
        "format=parquet in the sources of a corpus.",
    ),
    Kind(
        "a checkpoint of nanoGPT",
        lambda path: path.name == "ckpt.pt" or _has("ckpt.pt")(path),
        advice="Its network (learned positions, LayerNorm) is none of the classes of "
        "docs/families.md. Its text can be taken, but not its .bin files, which do not tell "
        "where documents end.",
    ),
    Kind(
        "a checkpoint of Megatron-LM",
        lambda path: (
            _has("latest_checkpointed_iteration.txt")(path)
            or _has("mp_rank_00*")(path)
            or _has("common.pt", "metadata.json")(path)
        ),
        advice="Its shape is in a pickle of Megatron's own classes, which is not opened. Export it "
        "to Hugging Face with Megatron Bridge, and give that folder to init_from. Its shards "
        "(.bin and .idx) can be taken: `python -m data_pipeline import`.",
    ),
    Kind(
        "a checkpoint of NeMo",
        lambda path: path.suffix == ".nemo" or _has("context", "weights")(path),
        advice="Export it to Hugging Face with NeMo's `export_ckpt`, and give that folder to "
        "init_from.",
    ),
    Kind(
        "a checkpoint of OLMo-core",
        _has("model_and_optim", "config.json"),
        advice="Convert it with OLMo-core's own converter to Hugging Face, and give that folder to "
        "init_from.",
    ),
    Kind(
        "a run of Headwater",
        _has("config.yaml", "checkpoints"),
        advice="Export it: `python -m pretrain export run=...`.",
    ),
    Kind(
        "a distributed checkpoint of torch",
        _has(".metadata", "*.distcp"),
        advice="It has names and tensors, and no shape of the model. Export it with the trainer "
        "that wrote it.",
    ),
)


def kind_of(path: Path) -> Kind:
    """Returns the kind of a checkpoint, one that can be imported.

    Raises:
        InputError: The path does not exist, is none of the kinds, or is one that cannot be
            imported.
    """
    if not path.exists():
        raise InputError(f"path={path} does not exist. Give a checkpoint of another trainer.")
    for kind in KINDS:
        if kind.is_one(path):
            if kind.taken is None:
                raise InputError(f"path={path}: this is {kind.noun}. {kind.advice}")
            return kind
    taken = ", ".join(kind.noun for kind in KINDS if kind.taken)
    raise InputError(f"path={path}: not a known checkpoint. Give {taken}.")
