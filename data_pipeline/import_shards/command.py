"""`python -m data_pipeline import`: makes a corpus from existing `.bin`/`.idx` shards.

Megatron-LM, NeMo and GPT-NeoX write the same index format, in which a document can consist of
several sequences. By default the shards are linked, not copied. Every token is read once, to
compute the checksums and counts of the manifest and to check the ids.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from conf.errors import InputError
from conf.output_kinds import CORPUS
from conf.outputs import Output
from data_pipeline.import_shards.adopt import adopt, check_dtypes
from data_pipeline.import_shards.config import ImportConfig
from data_pipeline.import_shards.listing import Pair, list_pairs, shard_file
from data_pipeline.store.manifest import FILE, Manifest
from data_pipeline.text.corpus import TokenizerConfig
from data_pipeline.tokenizing.corpus_tokenizer import write_adopted_tokenizer
from data_pipeline.tokenizing.tokenizer import (
    document_tokenizer,
    load_tokenizer,
    special_ids,
    token_bytes,
    vocab_size_of,
)

PARALLEL_BYTES = 1 << 27
"""Minimum total size of the shards, in bytes, at which several processes read them."""


def import_shards(config: ImportConfig) -> None:
    """Writes the corpus `config.out`.

    Raises InputError if a shard is invalid, and then leaves no output.
    """
    from data_pipeline.tokenizing.finish import print_summary

    console = Console(soft_wrap=True, highlight=False)
    out = Path(config.out)
    output = Output(config.out, CORPUS, config.overwrite, [config.tokenizer])
    output.check()
    sources = config.sources or {config.source: str(config.path)}
    pairs = [pair for name, where in sources.items() for pair in list_pairs(name, where, config)]
    for pair in pairs:
        if pair.prefix.resolve().is_relative_to(out.resolve()):
            raise InputError(
                f"out={out}: the folder contains {pair.prefix}.bin, which the command reads. "
                "Choose another folder."
            )
    path = Path(config.tokenizer)
    tokens = TokenizerConfig(
        path=config.tokenizer,
        pad_token=config.pad_token or config.eos_token,
        bos_token=config.bos_token or config.eos_token,
        eos_token=config.eos_token,
    )
    ids = special_ids(load_tokenizer(path), tokens, group="")
    special = tokens.special_tokens()
    tokenizer = Tokenizer.from_str(document_tokenizer(path, special, keep_added=True)[0])
    with output.folder() as folder:
        np.save(folder / "token_bytes.npy", token_bytes(tokenizer))
        entry = {"file": "tokenizer.json", "vocab_size": vocab_size_of(tokenizer), **ids}
        manifest = _adopt_all(pairs, config, entry, folder, console)
        not_added = write_adopted_tokenizer(path, special, manifest)
        (folder / FILE).write_text(manifest.to_json())
    print_summary(manifest, console)
    _print_warnings(manifest, config, list(sources), not_added, console)
    console.print(f"made {out} from {len(pairs):,} shards", markup=False)


def _print_warnings(
    manifest: Manifest,
    config: ImportConfig,
    sources: list[str],
    not_added: list[str],
    console: Console,
) -> None:
    warnings = []
    if not manifest.ends_in_eos:
        warnings.append(
            f"{config.eos_token} is missing at the end of some documents, or occurs inside some. "
            "The document boundaries will be read from the indices."
        )
    if not_added:
        warnings.append(
            f"tokenizer={config.tokenizer} adds {' '.join(not_added)} to each text, but some "
            "documents do not have these tokens. The exported tokenizer will not add them."
        )
    warnings += [
        f"source '{source}' has no held-out shard, so it has no validation loss. Set "
        "held_out_fraction=... or held_out=<glob of shards>."
        for source in sources
        if not manifest.shards("held_out", source)
    ]
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _adopt_all(
    pairs: list[Pair],
    config: ImportConfig,
    tokenizer: dict[str, Any],
    folder: Path,
    console: Console,
) -> Manifest:
    from rich.progress import track

    for split in ("train", "held_out"):
        (folder / split).mkdir()
    total = sum(shard_file(pair.prefix, ".bin").stat().st_size for pair in pairs)
    workers = min(config.workers or len(os.sched_getaffinity(0)), len(pairs))
    job = partial(adopt, folder=folder, tokenizer=tokenizer, link=config.link)
    with_progress = partial(
        track,
        description="reading",
        total=len(pairs),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    if workers == 1 or total < PARALLEL_BYTES:
        adopted = list(with_progress(map(job, pairs)))
    else:
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            try:
                adopted = list(with_progress(pool.map(job, pairs)))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    check_dtypes(pairs, adopted)
    splits: dict[str, dict[str, list[dict[str, Any]]]] = {"train": {}, "held_out": {}}
    sources: dict[str, dict[str, int]] = {}
    for pair, shard in zip(pairs, adopted, strict=True):
        splits[pair.split].setdefault(pair.source, []).append(shard.entry)
        counts = sources.setdefault(pair.source, {"files": 0, "documents": 0, "bytes": 0})
        counts["files"] += 1
        counts["documents"] += shard.entry["documents"]
        counts["bytes"] += shard.entry["bytes"]
    inputs = {"settings": asdict(config), "shards": splits}
    return Manifest(
        folder=folder,
        name=config.name or Path(config.out).name,
        inputs=hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest(),
        tokenizer=tokenizer,
        dtype=adopted[0].dtype,
        splits=splits,
        sources=sources,
        ends_in_eos=all(shard.ends_in_eos for shard in adopted),
        packed=[],
        origin="import",
        encoder={},
    )
