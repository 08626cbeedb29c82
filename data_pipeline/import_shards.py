"""`python -m data_pipeline import`: adopts `.bin`/`.idx` pairs that others made, without copying.

Megatron-LM, NeMo and GPT-NeoX write the same index; a document may be of several sequences. Every
token is read once, for checksums and to find what the manifest states.
"""

from __future__ import annotations

import glob
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING
from tokenizers import Tokenizer

from conf.errors import InputError, did_you_mean
from conf.folders import expand, files_under
from conf.output_kinds import CORPUS
from conf.outputs import Output
from data_pipeline.store.checksums import CHECKSUM, sha256_of_file
from data_pipeline.store.manifest import FILE, Manifest
from data_pipeline.store.shard_scan import (
    BadIndex,
    Ints,
    index_flaws,
    read_index,
    scan_tokens,
    write_index_without_empty,
)
from data_pipeline.tokenizing.corpus_tokenizer import write_adopted_tokenizer
from data_pipeline.tokenizing.tokenizer import (
    as_encoded,
    load_tokenizer,
    token_bytes,
    vocab_size_of,
)

LINKS = ("symlink", "hard", "copy")
PARALLEL_BYTES = 1 << 27
TABLE_ROWS = 1 << 20


@dataclass
class ImportConfig:
    """path: a folder, a prefix or a glob of `.bin`/`.idx` pairs, for one `source`; several go into
    `sources.<name>=<folder, prefix or glob>`. out: the folder to make; name: of the corpus, null
    for that of the folder.

    tokenizer: the tokenizer.json that the ids are of; eos_token: what documents end with, or would.
    bos_token, pad_token: null for eos_token.
    held_out_fraction: share of each source's shards, at least one where it is above 0, that is
    never trained on, chosen by `seed`; held_out: a glob on their names or paths instead.
    link: symlink, hard or copy. workers: processes, 0 for as many as there are cores.
    overwrite: replaces `out`, if it is a corpus that Headwater made.
    """

    tokenizer: str = MISSING
    out: str = MISSING
    eos_token: str = MISSING
    path: str | None = None
    source: str = "text"
    sources: dict[str, str] = field(default_factory=dict)
    name: str | None = None
    bos_token: str | None = None
    pad_token: str | None = None
    held_out_fraction: float = 0.0
    held_out: str | None = None
    seed: int = 0
    link: str = "symlink"
    workers: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.link not in LINKS:
            raise InputError(f"link={self.link}: unknown choice{did_you_mean(self.link, LINKS)}.")
        if not 0 <= self.held_out_fraction < 1:
            raise InputError(
                f"held_out_fraction={self.held_out_fraction:g}, expected 0 or more and less than 1."
            )
        if self.held_out_fraction and self.held_out:
            raise InputError("held_out_fraction and held_out are both given: give one of them.")
        if bool(self.path) == bool(self.sources):
            raise InputError(
                "give path=<folder, prefix or glob> for one source, or sources.<name>=... for each "
                "of several."
            )


@dataclass(frozen=True)
class Pair:
    """A shard of others: `prefix` is its absolute path without ending; `file` its place in the
    folder that is made."""

    source: str
    split: str
    prefix: Path
    file: str


@dataclass(frozen=True)
class Adopted:
    """The manifest's entry, the type of its ids and whether its documents end in EOS."""

    entry: dict[str, Any]
    dtype: str
    ends_in_eos: bool


def import_shards(config: ImportConfig) -> None:
    """Makes `config.out`; raises InputError, and leaves nothing, for what cannot be trained on."""
    from rich.console import Console

    from data_pipeline.tokenizing.finish import print_summary

    console = Console(soft_wrap=True, highlight=False)
    out = Path(config.out)
    output = Output(config.out, CORPUS, config.overwrite, [config.tokenizer])
    output.check()
    named = config.sources or {config.source: str(config.path)}
    pairs = [pair for name, where in named.items() for pair in list_pairs(name, where, config)]
    for pair in pairs:
        if pair.prefix.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{pair.prefix}.bin lies in out={out}: name another folder.")
    given = Path(config.tokenizer)
    ids = _special_ids(load_tokenizer(given), config)
    special = [t for t in (config.eos_token, config.bos_token, config.pad_token) if t]
    tokenizer = Tokenizer.from_str(as_encoded(given, special, keep_added=True)[0])
    with output.folder() as folder:
        np.save(folder / "token_bytes.npy", token_bytes(tokenizer))
        about = {"file": "tokenizer.json", "vocab_size": vocab_size_of(tokenizer), **ids}
        manifest = _adopt_all(pairs, config, about, folder, console)
        not_added = write_adopted_tokenizer(given, special, manifest)
        (folder / FILE).write_text(manifest.to_json())
    print_summary(manifest, console)
    if not manifest.ends_in_eos:
        console.print(
            f"not every document ends in {config.eos_token} and has none inside: documents are "
            "told by the index.",
            style="yellow",
            markup=False,
        )
    if not_added:
        console.print(
            f"tokenizer={config.tokenizer} adds {' '.join(not_added)} to each text, but not all "
            "documents have it: the exported tokenizer will add nothing.",
            style="yellow",
            markup=False,
        )
    for source in named:
        if not manifest.shards("held_out", source):
            console.print(
                f"source '{source}' has nothing held out and will not be validated on: give "
                "held_out_fraction=... or held_out=<glob of shards>.",
                style="yellow",
                markup=False,
            )
    console.print(f"made {out} of {len(pairs):,} shards", markup=False)


def _special_ids(tokenizer: Tokenizer, config: ImportConfig) -> dict[str, int]:
    ids = {}
    for name in ("pad", "bos", "eos"):
        key = f"{name}_token" if getattr(config, f"{name}_token") else "eos_token"
        number = tokenizer.token_to_id(getattr(config, key))
        if number is None:
            raise InputError(
                f"{key}={getattr(config, key)} is not in the vocabulary of {config.tokenizer}: "
                "name the token that it has."
            )
        ids[f"{name}_id"] = number
    return ids


def list_pairs(source: str, where: str, config: ImportConfig) -> list[Pair]:
    """The pairs of a source in the order of their names, each in its split; raises InputError for
    one that lacks its other half, or a split that cannot be made."""
    key = f"sources.{source}={where}" if config.sources else f"path={where}"
    prefixes = sorted(set(_prefixes(where)))
    if not prefixes:
        raise InputError(
            f"{key} has no .bin and .idx: expected a folder, a prefix or a glob of Megatron shards."
        )
    for prefix in prefixes:
        here = [_with(prefix, ending).is_file() for ending in (".bin", ".idx")]
        if not all(here):
            there, missing = (".bin", ".idx") if here[0] else (".idx", ".bin")
            raise InputError(
                f"{_with(prefix, there)} is there, but {_with(prefix, missing).name} is not: a "
                "shard is both; restore it, or name only whole shards in a glob."
            )
    held_out = _held_out(source, prefixes, config)
    if len(held_out) == len(prefixes):
        raise InputError(
            f"held_out={config.held_out} takes all {len(prefixes)} shards of source '{source}': "
            "leave some to train on."
        )
    pairs, numbers = [], {"train": 0, "held_out": 0}
    for prefix in prefixes:
        split = "held_out" if prefix in held_out else "train"
        pairs.append(Pair(source, split, prefix, f"{split}/{source}-{numbers[split]:05}"))
        numbers[split] += 1
    return pairs


def _prefixes(where: str) -> Iterator[Path]:
    path = Path(where)
    if path.is_dir():
        found = [Path(name) for name in files_under(where)]
    elif glob.has_magic(where):
        found = [Path(name) for name in expand(where)]
    else:
        found = [Path(f"{where}{ending}") for ending in ("", ".bin", ".idx")]
    for file in found:
        if file.suffix in (".bin", ".idx") and file.is_file():
            yield file.absolute().with_suffix("")


def _held_out(source: str, prefixes: list[Path], config: ImportConfig) -> set[Path]:
    if config.held_out:
        pattern = config.held_out.removesuffix(".bin").removesuffix(".idx")
        named = {p for p in prefixes if fnmatch(p.name, pattern) or fnmatch(str(p), pattern)}
        if not named:
            raise InputError(
                f"held_out={config.held_out} matches no shard of source '{source}', such as "
                f"{prefixes[0].name}: expected a glob on names or paths."
            )
        return named
    if not config.held_out_fraction:
        return set()
    if len(prefixes) == 1:
        raise InputError(
            f"held_out_fraction={config.held_out_fraction:g}, but source '{source}' is one shard, "
            f"{prefixes[0].name}, and only whole shards can be held out: validation needs one of "
            "its own; tokenize some text apart, or give held_out_fraction=0 to train without it."
        )
    count = max(1, round(config.held_out_fraction * len(prefixes)))

    def key(prefix: Path) -> bytes:
        return hashlib.sha256(f"{config.seed}:split:{source}:{prefix.name}".encode()).digest()

    return set(sorted(prefixes, key=key)[: min(count, len(prefixes) - 1)])


def _adopt_all(
    pairs: list[Pair], config: ImportConfig, about: dict[str, Any], folder: Path, console: Any
) -> Manifest:
    from rich.progress import track

    for split in ("train", "held_out"):
        (folder / split).mkdir()
    total = sum(_with(pair.prefix, ".bin").stat().st_size for pair in pairs)
    workers = min(config.workers or len(os.sched_getaffinity(0)), len(pairs))
    job = partial(adopt, folder=folder, about=about, link=config.link)
    shown = partial(
        track,
        description="reading",
        total=len(pairs),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    if workers == 1 or total < PARALLEL_BYTES:
        adopted = list(shown(map(job, pairs)))
    else:
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            try:
                adopted = list(shown(pool.map(job, pairs)))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    _check_types(pairs, adopted)
    splits: dict[str, dict[str, list[dict[str, Any]]]] = {"train": {}, "held_out": {}}
    sources: dict[str, dict[str, int]] = {}
    for pair, shard in zip(pairs, adopted, strict=True):
        splits[pair.split].setdefault(pair.source, []).append(shard.entry)
        counts = sources.setdefault(pair.source, {"files": 0, "documents": 0, "bytes": 0})
        counts["files"] += 1
        counts["documents"] += shard.entry["documents"]
        counts["bytes"] += shard.entry["bytes"]
    what = {"settings": asdict(config), "shards": splits}
    return Manifest(
        folder=folder,
        name=config.name or Path(config.out).name,
        inputs=hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest(),
        tokenizer=about,
        dtype=adopted[0].dtype,
        splits=splits,
        sources=sources,
        ends_in_eos=all(shard.ends_in_eos for shard in adopted),
        packed=[],
        origin="import",
        encoder={},
    )


def adopt(pair: Pair, folder: Path, about: dict[str, Any], link: str) -> Adopted:
    """Checks a pair, links it into `folder` and writes what lies beside it; raises InputError."""
    bin_path, idx_path = _with(pair.prefix, ".bin"), _with(pair.prefix, ".idx")
    try:
        index = read_index(idx_path)
    except BadIndex as error:
        raise InputError(f"{idx_path} {error.flaw.text}: it cannot be imported.") from None
    flaw = next(iter(index_flaws(index)), None)
    if flaw is not None:
        raise InputError(f"{idx_path}, {flaw}: it is damaged and cannot be imported.")
    lengths = index.document_lengths()
    size, wanted = bin_path.stat().st_size, index.tokens * index.dtype.itemsize
    if size != wanted:
        raise InputError(
            f"{bin_path} has {size} bytes, its index says {wanted}: it is cut off or of another "
            "index."
        )
    if not wanted:
        raise InputError(f"{bin_path} holds no tokens: leave it out.")
    sizes = np.load(folder / "token_bytes.npy", allow_pickle=False)
    scan = scan_tokens(
        bin_path, index.dtype, about["vocab_size"], about["eos_id"], lengths, token_bytes=sizes
    )
    outside = scan.outside_vocabulary
    if outside.count:
        offset, found = outside.first[0]
        raise InputError(
            f"{bin_path} holds token id {found} at token {offset} ({outside.count} such "
            f"tokens), beyond the vocabulary of {about['vocab_size']}: tokenizer= is not the one "
            "that it was made with."
        )
    target = folder / pair.file
    _link(bin_path, _with(target, ".bin"), link)
    if lengths.all():
        _link(idx_path, _with(target, ".idx"), link)
    else:
        write_index_without_empty(index, _with(target, ".idx"))
    _with(target, ".sums").write_bytes(scan.checksums.astype(CHECKSUM).tobytes())
    kept = np.flatnonzero(lengths)
    _write_table(target, pair.prefix, kept)
    entry = {
        "file": pair.file,
        "documents": len(kept),
        "tokens": index.tokens,
        "bytes": scan.text_bytes,
        "sha256": scan.sha256,
        "idx_sha256": sha256_of_file(_with(target, ".idx")),
        "sums": True,
        "masked": False,
    }
    ends_in_eos = not scan.no_eos.count and not scan.eos_inside.count
    return Adopted(entry, index.dtype.name, ends_in_eos)


def _check_types(pairs: list[Pair], adopted: list[Adopted]) -> None:
    first = adopted[0].dtype
    for pair, shard in zip(pairs, adopted, strict=True):
        if shard.dtype != first:
            raise InputError(
                f"{_with(pair.prefix, '.idx')} holds {shard.dtype}, but "
                f"{_with(pairs[0].prefix, '.idx').name} holds {first}: shards of one folder are of "
                "one type; import them into folders of their own."
            )


def _link(path: Path, target: Path, how: str) -> None:
    try:
        if how == "symlink":
            target.symlink_to(path.resolve())
        elif how == "hard":
            os.link(path.resolve(), target)
        else:
            shutil.copyfile(path, target)
    except OSError as error:
        raise InputError(
            f"link={how} does not work for {path} ({error.strerror}): choose another of "
            f"{', '.join(LINKS)}."
        ) from None


def _write_table(target: Path, prefix: Path, numbers: Ints) -> None:
    """The original shard and the number in it of each document, for the ledger."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("file", pa.string()), ("position", pa.int64())])
    with pq.ParquetWriter(_with(target, ".docs.parquet"), schema, compression="zstd") as writer:
        for first in range(0, len(numbers), TABLE_ROWS):
            positions = pa.array(numbers[first : first + TABLE_ROWS])
            files = pa.array([f"{prefix.name}.bin"] * len(positions))
            writer.write_table(pa.table([files, positions], schema=schema))


def _with(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)
