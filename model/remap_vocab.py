"""`python -m model remap_vocab`: another tokenizer for trained weights, as H2O-Danube2 took over
Mistral's (arXiv 2401.16818v2, section 7), to go on training with `init_from=`.

A row of the embedding, and of the head, goes with what its piece stands for: pieces in both
vocabularies keep theirs, special tokens that of their role. A new piece gets the mean of the rows
that the old tokenizer has for its text (as in FVT, arXiv 2402.09977), or a draw.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from conf.errors import InputError, one_of
from conf.output_kinds import MODEL
from conf.outputs import Output
from model.families.hf_forms import write_both_forms
from model.vocabulary import BYTE_PIECE, ROLES, Vocabulary

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@dataclass
class RemapVocabConfig:
    """model: a Hugging Face folder; tokenizer: another one, a tokenized corpus, or a
    tokenizer.json; out: the folder to make.

    init: mean_of_pieces, or normal: drawn with the mean and spread of the old rows.
    multiple: the vocabulary is filled up to a multiple of it with rows that no id uses.
    overwrite: replaces `out`, if it is a model folder that Headwater made.
    """

    model: str = MISSING
    tokenizer: str = MISSING
    out: str = MISSING
    init: str = "mean_of_pieces"
    multiple: int = 64
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("init", self.init, ("mean_of_pieces", "normal"))
        if self.multiple < 1:
            raise InputError(f"multiple={self.multiple}, expected at least 1.")


@dataclass
class Source:
    """Where a new row comes from: the mean of the old rows `of`, or, without any, a draw."""

    why: str
    of: list[int] = field(default_factory=list)


def remap_vocab(config: RemapVocabConfig) -> None:
    """Writes the folder `out`, whole or not at all, and says how many rows were kept."""
    output = Output(config.out, MODEL, config.overwrite, [config.model, config.tokenizer])
    output.check()
    folder, out = Path(config.model), config.out
    if not (folder / "config.json").is_file():
        raise InputError(
            f"model={folder} has no config.json: expected a Hugging Face model folder."
        )
    about = json.loads((folder / "config.json").read_text())
    old, new = Vocabulary(folder), Vocabulary(Path(config.tokenizer))
    files = _weight_files(folder)
    sources = list(row_sources(old, new, about["vocab_size"], config.init))
    rows = math.ceil(len(sources) / config.multiple) * config.multiple
    sources += [Source("unused")] * (rows - len(sources))

    with output.folder() as made:
        for file in files:
            _write_weights(folder / file, made / file, sources, config.seed, new)
        if len(files) > 1:
            _write_index(folder, made, files)
        special: dict[str, Any] = {
            f"{role}_token_id": new.special.get(role) for role in ROLES if role != "unk"
        }
        _write_json(made / "config.json", about | {"vocab_size": rows} | special)
        generation = folder / "generation_config.json"
        if generation.is_file():
            stated = json.loads(generation.read_text())
            _write_json(made / generation.name, stated | special)
        _copy_tokenizer(new, made, about)
        write_both_forms(made)
        counts = Counter(source.why for source in sources)
        record = {
            "model": folder.name,
            "tokenizer_sha256": hashlib.sha256(new.file.read_bytes()).hexdigest(),
            "init": config.init,
            "seed": config.seed,
            "vocab_size": rows,
            "rows": dict(counts),
        }
        _write_json(made / "remap_vocab.json", record)
    said = ", ".join(f"{count:,} {why}" for why, count in counts.most_common())
    print(f"{out}: {rows:,} rows: {said}; train on with init_from={out}")


def row_sources(old: Vocabulary, new: Vocabulary, old_rows: int, init: str) -> Iterator[Source]:
    """Of each id of the new vocabulary, in order. old_rows: of the old embedding."""
    by_meaning: dict[tuple[bool, bytes], list[int]] = {}
    for number, piece in sorted(old.pieces.items()):
        if number < old_rows:
            by_meaning.setdefault(old.meaning(piece), []).append(number)
    roles = {new.special[role]: role for role in reversed(ROLES) if role in new.special}
    for number in range(new.size):
        if number not in new.pieces:
            yield Source("unused")
            continue
        piece, role = new.pieces[number], roles.get(number)
        if role in old.special and old.special[role] < old_rows:
            yield Source("by role", [old.special[role]])
        elif same := by_meaning.get(new.meaning(piece)):
            # `A` may be spelled <0x41> too: the same spelling first, then the usual one.
            best = min(
                same, key=lambda n: (old.pieces[n] != piece, bool(BYTE_PIECE.match(old.pieces[n])))
            )
            yield Source("kept", [best])
        else:
            is_special, text = new.meaning(piece)
            cut = [] if is_special or init == "normal" else old.cut(text)
            yield Source("mean of pieces" if cut else "drawn", [n for n in cut if n < old_rows])


def new_table(table: Tensor, sources: list[Source], seed: int, new: Vocabulary) -> Tensor:
    """The new embedding or head, (len(sources), hidden), from the old one (rows, hidden).

    A draw is a function of seed and piece alone: the order of a vocabulary does not matter.
    """
    values = table.float()
    mean, spread = values.mean(0), values.std(0)
    made = torch.empty(len(sources), table.shape[1], dtype=table.dtype)
    for number, source in enumerate(sources):
        if len(source.of) == 1:
            made[number] = table[source.of[0]]
        elif source.of:
            made[number] = values[source.of].mean(0).to(table.dtype)
        elif source.why == "unused":
            made[number] = mean.to(table.dtype)
        else:
            digest = hashlib.blake2b(f"{seed}:{new.pieces[number]}".encode(), digest_size=7)
            generator = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little"))
            drawn = mean + spread * torch.randn(table.shape[1], generator=generator)
            made[number] = drawn.to(table.dtype)
    return made


def _weight_files(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    raise InputError(f"model={folder} has no model.safetensors (nor its index).")


def _write_weights(
    source: Path, target: Path, sources: list[Source], seed: int, new: Vocabulary
) -> None:
    """One file of weights, with the tables in it changed."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    for name in TABLES:
        if name in tensors:
            tensors[name] = new_table(tensors[name], sources, seed, new)
    save_file(tensors, target, metadata=metadata)
    target.chmod(0o644)  # safetensors writes them for the owner alone


def _write_index(folder: Path, target: Path, files: list[str]) -> None:
    """The index of the new files: the names stay where they were."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    size = 0
    for name in files:
        with safe_open(target / name, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                part = file.get_tensor(key)
                size += part.numel() * part.element_size()
    index["metadata"] = index.get("metadata", {}) | {"total_size": size}
    _write_json(target / "model.safetensors.index.json", index)


def _copy_tokenizer(new: Vocabulary, target: Path, about: dict[str, Any]) -> None:
    """The tokenizer's files; what transformers wants beside a tokenizer.json where it is alone."""
    for name in TOKENIZER_FILES:
        if (new.folder / name).is_file():
            shutil.copyfile(new.folder / name, target / name)
    shutil.copyfile(new.file, target / "tokenizer.json")
    if not (target / "tokenizer_config.json").is_file():
        named = {f"{role}_token": new.pieces[number] for role, number in new.special.items()}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": about["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
        }
        _write_json(target / "tokenizer_config.json", settings | named)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
