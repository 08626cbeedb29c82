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
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor

from conf.errors import InputError, one_of
from conf.model_card import CardConfig, inherited_metadata, model_card
from conf.output_kinds import MODEL
from conf.outputs import Output
from conf.tokenizer_folder import read_settings, read_template
from model.families.folder import HFWeights, save_weights
from model.families.hf_forms import Settings, tokenizer_settings, write_json
from model.families.model_files import ModelFiles
from model.vocabulary import BYTE_TOKEN, ROLES, Vocabulary

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
"""Tensors with one row per token."""


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
    files, weights = ModelFiles.read(folder), HFWeights(folder)
    stored = files.config
    old, new = Vocabulary(folder), Vocabulary(Path(config.tokenizer))
    sources = list(row_sources(old, new, stored["vocab_size"], config.init))
    rows = math.ceil(len(sources) / config.multiple) * config.multiple
    sources += [RowSource("unused")] * (rows - len(sources))

    with output.folder() as made:
        remapped = (
            (name, new_table(tensor, sources, config.seed, new) if name in TABLES else tensor)
            for name, tensor in weights.stored()
        )
        save_weights(made, remapped, None, None)
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
        special = {f"{role}_token_id": new.special.get(role) for role in ROLES if role != "unk"}
        replace(
            files,
            config=stored | {"vocab_size": rows} | special,
            tokenizer=new.file.read_text(encoding="utf-8"),
            tokenizer_settings=_settings(new, stored["max_position_embeddings"]),
            template=_template(files.template, old, new),
            generation=None if files.generation is None else files.generation | special,
        ).write(made, _card(folder, out, record, summary))
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


def _settings(new: Vocabulary, max_seq_len: int) -> Settings:
    """Returns the tokenizer_config.json of the new tokenizer, for the length of the model."""
    special = {role: new.tokens[number] for role, number in new.special.items()}
    settings = tokenizer_settings(special, max_seq_len)
    return settings | read_settings(new.folder) | {"model_max_length": max_seq_len}


def _template(of_model: str | None, old: Vocabulary, new: Vocabulary) -> str | None:
    """Returns the chat template of the new tokenizer, else of the model if all its tokens exist."""
    own = read_template(new.folder)
    if own is not None or of_model is None:
        return own
    used = (token for token in old.special_names if token in of_model)
    return of_model if all(token in new.ids for token in used) else None


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
