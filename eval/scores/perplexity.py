"""`python -m eval perplexity`: held-out loss of an exported model, computed in `transformers`.

GGUF files of the model are scored in llama.cpp on the same text (`eval.scores.gguf_perplexity`).

The text is the same as in the trainer's validation: the same samples of the held-out shards, in
which tokens attend only within their document. Here, each document's part of a sample becomes a
separate sequence. The loss is the same, because rotary positions are relative.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from omegaconf import MISSING
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from conf.errors import InputError
from conf.model_card import CARD
from conf.output_kinds import PERPLEXITY
from conf.outputs import Output
from data_pipeline.sampling.batches import IGNORED, Batch, held_out_batches
from data_pipeline.store.corpus import open_corpus
from data_pipeline.store.manifest import Manifest
from eval.chat.llamacpp import check_llamacpp, find_file
from eval.inloop.evaluator import Score
from eval.load_model import load_model
from eval.scores.gguf_perplexity import mean, score_files, write_card


@dataclass
class PerplexityConfig:
    """Configuration of `perplexity`.

    model: a folder, a run, a checkpoint of a run, or a name on the Hub.
    data: the corpus folder that the model was trained on.
    seq_len: tokens per sample; use that of the trainer's last stage.
    tokens: held-out tokens per source; use the trainer's validation.tokens.
    batch_tokens: tokens per forward pass.
    dtype: dtype to compute in; auto for the stored one if the device supports it, else float32.
    gguf: GGUF files of the model, whose loss llama.cpp computes on the same tokens.
    card: writes the perplexities of the model and of its GGUF files into the model's card.
    out: a JSON file for the scores, null for none.
    overwrite: replaces an existing file of scores.
    """

    model: str = MISSING
    data: str = MISSING
    seq_len: int = MISSING
    tokens: int = 65536
    batch_tokens: int = 8192
    dtype: str = "auto"
    device: str = "auto"
    gguf: list[str] = field(default_factory=list)
    card: bool = False
    out: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for key in ("seq_len", "tokens", "batch_tokens"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)}: expected 1 or more.")
        names = [Path(file).name for file in self.gguf]
        if len(set(names)) < len(names):
            raise InputError(f"gguf={self.gguf}: two files have the same name. Rename one.")
        if self.card and not self.gguf:
            raise InputError("card=true: requires gguf. Add gguf=[...], or remove it.")


def perplexity(config: PerplexityConfig) -> None:
    """Prints a table of losses and writes `out`.

    Raises:
        InputError: the model or corpus is missing, their tokenizers differ, or the held-out split
            is too small.
    """
    output = None
    if config.out is not None:
        output = Output(config.out, PERPLEXITY, config.overwrite, [config.model, config.data])
        output.check()
    files = [find_file(file, "gguf") for file in config.gguf]
    if files:
        check_llamacpp("gguf")
    manifest = open_corpus(config.data)
    manifest.check_tokenizer()
    loaded = load_model(config.model, config.dtype, config.device)
    if config.card and not (loaded.folder / CARD).is_file():
        raise InputError(f"card=true: {loaded.folder} has no {CARD}. Add one, or remove card.")
    check_same_tokenizer(config, loaded.folder, manifest)
    sizes = torch.from_numpy(manifest.token_bytes().astype("int64"))
    console = Console()
    scores: dict[str, Score] = {}
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for source in manifest.source_tokens("held_out"):
        held_out = list(held_out_batches(manifest, source, config.seq_len, 1, config.tokens))
        if not held_out:
            raise InputError(
                f"seq_len={config.seq_len}: the held-out split of source '{source}' in "
                f"data={config.data}, limited to tokens={config.tokens}, has fewer tokens than one "
                "sequence. Lower seq_len, or raise tokens."
            )
        parts[source] = list(segments(held_out))
        batches = padded(parts[source], config.batch_tokens)
        shown = track(batches, source, console=console, disable=not console.is_terminal)
        scores[source] = score(loaded.model, shown, sizes, loaded.device)
    loss = mean(scores)
    length = f"sequences of {config.seq_len}"
    print_scores(console, f"{config.model}, {length}, computed in {loaded.dtype}", scores)
    of_files = score_files(files, parts, sizes, config.seq_len)
    for name, found in of_files.items():
        print_scores(console, f"{name}, {length}, computed in llama.cpp", found)
    if config.card:
        tokens = sum(entry.tokens for entry in scores.values())
        text = (
            f"{tokens:,} held-out tokens of {manifest.folder.resolve().name} in sequences of "
            f"{config.seq_len:,}"
        )
        losses = {name: mean(found) for name, found in of_files.items()}
        write_card(loaded.folder, files, losses, (loaded.dtype, loss), text)
    if output:
        content = {
            "model": config.model,
            "seq_len": config.seq_len,
            "computed_in": loaded.dtype,
            "loss": loss,
            "sources": {source: asdict(entry) for source, entry in scores.items()},
            "gguf": {
                name: {
                    "loss": mean(found),
                    "sources": {source: asdict(entry) for source, entry in found.items()},
                }
                for name, found in of_files.items()
            },
        }
        output.write(json.dumps(content, indent=1))


def check_same_tokenizer(config: PerplexityConfig, folder: Path, manifest: Manifest) -> None:
    """Raises InputError if the vocabularies of the model and the corpus differ."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"model={config.model}: the folder has no tokenizer.json. Add this file.")
    vocabulary = Tokenizer.from_file(str(path)).get_vocab()
    if vocabulary != Tokenizer.from_file(str(manifest.tokenizer_path)).get_vocab():
        raise InputError(
            f"model={config.model}: the model's vocabulary differs from that of "
            f"data={config.data}. Give the corpus on which the model was trained."
        )


def segments(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (tokens, labels), each (length,), for the part of each document in each sample."""
    for batch in batches:
        tokens, labels = batch.tokens.flatten(), batch.labels.flatten()
        borders = batch.cu_seqlens.unique().tolist()
        for start, end in zip(borders, [*borders[1:], len(tokens)], strict=True):
            if start < end:
                yield tokens[start:end], labels[start:end]


def padded(
    parts: Iterable[tuple[Tensor, Tensor]], batch_tokens: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns batches of parts of similar length, padded on the right.

    Each batch is (tokens, labels, attention mask), all (batch, longest), with at most batch_tokens
    tokens unless a single part is longer.
    """
    batches = []
    rows: list[tuple[Tensor, Tensor]] = []
    ordered = sorted(parts, key=lambda part: len(part[0]))
    for number, part in enumerate(ordered):
        rows.append(part)
        following = ordered[number + 1 : number + 2]
        if not following or (len(rows) + 1) * len(following[0][0]) > batch_tokens:
            tokens, labels = zip(*rows, strict=True)
            lengths = torch.tensor([len(row) for row in tokens])
            batches.append(
                (
                    nn.utils.rnn.pad_sequence(list(tokens), batch_first=True),
                    nn.utils.rnn.pad_sequence(
                        list(labels), batch_first=True, padding_value=IGNORED
                    ),
                    (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
                )
            )
            rows = []
    return batches


@torch.inference_mode()
def score(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    token_bytes: Tensor,
    device: str,
) -> Score:
    """Returns the score over batches from `padded`, counted as in `eval.inloop.evaluator`."""
    total, of_text, tokens, size = 0.0, 0.0, 0, 0
    for ids, labels, mask in batches:
        logits = model(ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        counted = labels != IGNORED
        targets = labels[counted]
        # Only the counted positions are cast to float32.
        losses = nn.functional.cross_entropy(
            logits[counted.to(device)].float(), targets.to(device), reduction="none"
        ).cpu()
        sizes = token_bytes[targets]
        total += losses.sum().item()
        of_text += losses[sizes > 0].sum().item()
        tokens += len(targets)
        size += int(sizes.sum())
    return Score(total / max(1, tokens), of_text / math.log(2) / max(1, size), tokens)


def print_scores(console: Console, title: str, scores: dict[str, Score]) -> None:
    """Prints one row per source and one for all sources."""
    table = Table(title=title, title_justify="left")
    table.add_column("source")
    for column in ("loss, nats per token", "bits per byte", "tokens"):
        table.add_column(column, justify="right")
    for source, entry in scores.items():
        table.add_row(
            source, f"{entry.loss:.4f}", f"{entry.bits_per_byte:.4f}", f"{entry.tokens:,}"
        )
    tokens = sum(entry.tokens for entry in scores.values())
    table.add_row("all", f"{mean(scores):.4f}", "", f"{tokens:,}")
    console.print(table)
