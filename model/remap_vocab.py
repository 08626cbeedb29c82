"""The command `python -m model remap_vocab`, which replaces the tokenizer of a trained model.

H2O-Danube2 adopted another model's tokenizer in this way (arXiv 2401.16818v2, section 7). Training
then continues with `init_from=`.

Rows of the embedding and the head are matched by the text that their tokens stand for:

- A token in both vocabularies keeps its row.
- A special token gets the row of the old token with the same role.
- A new token gets the mean of the rows of the tokens into which the old tokenizer splits its text
  (FVT, arXiv 2402.09977), or a random row.
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
from conf.model_card import CARD, CardConfig, inherited_metadata, model_card
from conf.output_kinds import MODEL
from conf.outputs import Output
from conf.tokenizer_folder import TEMPLATE, read_template
from model.families.hf_forms import tokenizer_settings, write_both_forms, write_json
from model.vocabulary import BYTE_TOKEN, ROLES, Vocabulary

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors with one row per token."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@dataclass
class RemapVocabConfig:
    """Configuration of `model remap_vocab`.

    model: the Hugging Face folder of the model.
    tokenizer: the new tokenizer, as a Hugging Face folder, a tokenized corpus or a tokenizer.json.
    out: the folder to write.
    init: initialization of new tokens' rows: `mean_of_pieces`, or `normal`, which draws them with
        the mean and standard deviation of the old rows.
    multiple: divisor of the new vocabulary size, which is padded with unused rows.
    seed: seed of the random rows.
    overwrite: whether to replace `out` if it is a model folder that Headwater made.
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
            raise InputError(f"multiple={self.multiple}: expected 1 or more.")


@dataclass
class RowSource:
    """Origin of one row of the new vocabulary.

    Attributes:
        kind: `kept`, `by role`, `mean of pieces`, `drawn` or `unused`.
        old_rows: Ids whose rows are averaged; empty for a random or an unused row.
    """

    kind: str
    old_rows: list[int] = field(default_factory=list)


def remap_vocab(config: RemapVocabConfig) -> None:
    """Writes the folder `out`, complete or not at all, and prints the origin of its rows."""
    output = Output(config.out, MODEL, config.overwrite, [config.model, config.tokenizer])
    output.check()
    folder, out = Path(config.model), config.out
    if not (folder / "config.json").is_file():
        raise InputError(
            f"model={folder}: there is no config.json. Give a Hugging Face model folder."
        )
    stored = json.loads((folder / "config.json").read_text())
    old, new = Vocabulary(folder), Vocabulary(Path(config.tokenizer))
    files = _weight_files(folder)
    sources = list(row_sources(old, new, stored["vocab_size"], config.init))
    rows = math.ceil(len(sources) / config.multiple) * config.multiple
    sources += [RowSource("unused")] * (rows - len(sources))

    with output.folder() as made:
        for file in files:
            _write_weights(folder / file, made / file, sources, config.seed, new)
        if len(files) > 1:
            _write_index(folder, made, files)
        special: dict[str, Any] = {
            f"{role}_token_id": new.special.get(role) for role in ROLES if role != "unk"
        }
        write_json(made / "config.json", stored | {"vocab_size": rows} | special)
        generation = folder / "generation_config.json"
        if generation.is_file():
            settings = json.loads(generation.read_text())
            write_json(made / generation.name, settings | special)
        _copy_tokenizer(new, made, stored["max_position_embeddings"])
        _keep_template(folder, old, new, made)
        write_both_forms(made)
        counts = Counter(source.kind for source in sources)
        summary = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
        record = {
            "model": folder.resolve().name,
            "tokenizer_sha256": hashlib.sha256(new.file.read_bytes()).hexdigest(),
            "init": config.init,
            "seed": config.seed,
            "vocab_size": rows,
            "rows": dict(counts),
        }
        write_json(made / "remap_vocab.json", record)
        (made / CARD).write_text(_card(folder, out, record, summary))
    print(f"{out}: {rows:,} rows ({summary}). Continue training with init_from={out}")


def row_sources(old: Vocabulary, new: Vocabulary, old_rows: int, init: str) -> Iterator[RowSource]:
    """Yields the source of each row of the new vocabulary, in the order of its ids.

    Args:
        old: The tokenizer that the model was trained with.
        new: The tokenizer that replaces it.
        old_rows: Number of rows of the old embedding.
        init: `mean_of_pieces` or `normal`.
    """
    by_meaning: dict[tuple[bool, bytes], list[int]] = {}
    for number, token in sorted(old.tokens.items()):
        if number < old_rows:
            by_meaning.setdefault(old.meaning(token), []).append(number)
    roles = {new.special[role]: role for role in reversed(ROLES) if role in new.special}
    for number in range(new.size):
        if number not in new.tokens:
            yield RowSource("unused")
            continue
        token, role = new.tokens[number], roles.get(number)
        if role in old.special and old.special[role] < old_rows:
            yield RowSource("by role", [old.special[role]])
        elif same := by_meaning.get(new.meaning(token)):
            # `A` may also be spelled <0x41>: prefer the same spelling, then the character.
            best = min(
                same, key=lambda n: (old.tokens[n] != token, bool(BYTE_TOKEN.match(old.tokens[n])))
            )
            yield RowSource("kept", [best])
        else:
            is_special, text = new.meaning(token)
            parts = [] if is_special or init == "normal" else old.split(text)
            kind = "mean of pieces" if parts else "drawn"
            yield RowSource(kind, [part for part in parts if part < old_rows])


def new_table(table: Tensor, sources: list[RowSource], seed: int, new: Vocabulary) -> Tensor:
    """Returns the new embedding or head (len(sources), hidden) from the old one (rows, hidden).

    A random row depends only on the seed and the token's spelling, not on its id.
    """
    values = table.float()
    mean, deviation = values.mean(0), values.std(0)
    made = torch.empty(len(sources), table.shape[1], dtype=table.dtype)
    for number, source in enumerate(sources):
        if len(source.old_rows) == 1:
            made[number] = table[source.old_rows[0]]
        elif source.old_rows:
            made[number] = values[source.old_rows].mean(0).to(table.dtype)
        elif source.kind == "unused":
            made[number] = mean.to(table.dtype)
        else:
            digest = hashlib.blake2b(f"{seed}:{new.tokens[number]}".encode(), digest_size=7)
            generator = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little"))
            drawn = mean + deviation * torch.randn(table.shape[1], generator=generator)
            made[number] = drawn.to(table.dtype)
    return made


def _weight_files(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    raise InputError(
        f"model={folder}: there is neither model.safetensors nor its index. Convert the weights to "
        "safetensors."
    )


def _write_weights(
    source: Path, target: Path, sources: list[RowSource], seed: int, new: Vocabulary
) -> None:
    """Copies one weight file and replaces the TABLES in it."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    for name in TABLES:
        if name in tensors:
            tensors[name] = new_table(tensors[name], sources, seed, new)
    save_file(tensors, target, metadata=metadata)
    target.chmod(0o644)  # safetensors creates files that only their owner can read


def _write_index(folder: Path, target: Path, files: list[str]) -> None:
    """Writes the index of the new files, which hold the same tensors as the old ones."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    size = 0
    for name in files:
        with safe_open(target / name, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                part = file.get_tensor(key)
                size += part.numel() * part.element_size()
    index["metadata"] = index.get("metadata", {}) | {"total_size": size}
    write_json(target / "model.safetensors.index.json", index)


def _copy_tokenizer(new: Vocabulary, target: Path, max_seq_len: int) -> None:
    """Copies the tokenizer's files, and writes a tokenizer_config.json if there is none."""
    for name in TOKENIZER_FILES:
        if (new.folder / name).is_file():
            shutil.copyfile(new.folder / name, target / name)
    shutil.copyfile(new.file, target / "tokenizer.json")
    if not (target / "tokenizer_config.json").is_file():
        special = {role: new.tokens[number] for role, number in new.special.items()}
        settings = tokenizer_settings(special, max_seq_len)
        write_json(target / "tokenizer_config.json", settings)


def _keep_template(folder: Path, old: Vocabulary, new: Vocabulary, target: Path) -> None:
    """Writes the model's chat template, unless the tokenizer has its own or lacks tokens for it."""
    template = read_template(folder)
    if template is None or read_template(target) is not None:
        return
    if all(token in new.ids for token in old.special_names if token in template):
        (target / TEMPLATE).write_text(template, encoding="utf-8")


def _card(folder: Path, out: str, record: dict[str, Any], summary: str) -> str:
    """Returns the text of README.md."""
    facts = {
        "made from": record["model"],
        "tokenizer": f"sha256 {record['tokenizer_sha256'][:16]}",
        "rows of the vocabulary": f"{record['vocab_size']:,} ({summary})",
        "initial values": record["init"],
        "seed": str(record["seed"]),
    }
    metadata = CardConfig().metadata(inherited_metadata(folder))
    about = "A model whose tokenizer was replaced with Headwater, to be trained further."
    return model_card(Path(out).name, about, facts, metadata=metadata)
