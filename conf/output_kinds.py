"""The kinds of files and folders that commands make, recognized by their content."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from conf.outputs import Kind

MOST_BYTES = 1 << 26
"""Upper limit on the size of JSON files that are read to recognize a kind."""


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, or {} if the file is missing, too large or holds none."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(1 << 16).decode(errors="replace")
    except OSError:
        return ""


def _first_row(path: Path) -> set[str] | None:
    """Returns the keys of the first row of a jsonl file, or None if it has no row."""
    try:
        with path.open("rb") as file:
            line = file.readline(MOST_BYTES)
        return set(json.loads(line)) if line.strip() else None
    except (OSError, ValueError, TypeError):
        return set()


def _names(*patterns: str) -> Callable[[Path], Callable[[str], bool]]:
    return lambda _: lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def is_own_card(path: Path) -> bool:
    """Returns True if a README.md is a model card that Headwater wrote."""
    head = _head(path)
    return "with Headwater" in head or "\n- headwater\n" in head


def _is_model(folder: Path) -> bool:
    records = ("sft.json", "dpo.json", "remap_vocab.json")
    has_record = any("model" in read_json(folder / name) for name in records)
    return (folder / "config.json").is_file() and (has_record or is_own_card(folder / "README.md"))


MODEL = Kind(
    "a model folder",
    _is_model,
    _names(
        *("config.json", "generation_config.json", "model.safetensors", "model-*.safetensors"),
        *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"),
        *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json"),
        *("merges.txt", "tokenizer.model", "README.md", "sft.json", "dpo.json", "metrics.jsonl"),
        "remap_vocab.json",
    ),
)


AVERAGED_RUN = Kind(
    "a run folder with an average",
    lambda folder: "members" in read_json(folder / "average.json"),
    _names(
        *("average.json", "config.yaml", "env.json", "order.json", "ledger.jsonl"),
        *("metrics.jsonl", "corpus/*", "init_from/*", "checkpoints/latest", "checkpoints/step_*"),
    ),
)
"""A run folder in which no training has taken place since, or else it has further files."""

SHARD_ENDINGS = (".bin", ".idx", ".sums", ".mask", ".docs.parquet")
EDITION = re.compile(
    # An addition that is not in the manifest yet is recognized by the names of its shards.
    rf"additions/\d+/(train|held_out)/[^/]+({'|'.join(map(re.escape, SHARD_ENDINGS))})"
    r"|(additions/\d+/)?(cleaning\.json|rejected/[^/]+\.jsonl|index/(index\.json|\d+\.[a-z.]+)"
    r"|duplicates/(settings\.json|(files|earlier|\d+)\.parquet))"
)
"""Names of the files in a corpus that its manifest does not list."""


def _owns_of_corpus(folder: Path) -> Callable[[str], bool]:
    manifest = read_json(folder / "manifest.json")
    own = {"manifest.json", "token_bytes.npy", manifest["tokenizer"]["file"]}
    shards = {
        shard["file"]
        for sources in manifest["splits"].values()
        for entries in sources.values()
        for shard in entries
    }
    return lambda name: (
        name in own
        or any(name.endswith(end) and name.removesuffix(end) in shards for end in SHARD_ENDINGS)
        or EDITION.fullmatch(name) is not None
    )


def _is_corpus(folder: Path) -> bool:
    manifest = read_json(folder / "manifest.json")
    return "format" in manifest and all(
        isinstance(manifest.get(key), dict) for key in ("tokenizer", "splits")
    )


CORPUS = Kind("a tokenized corpus", _is_corpus, _owns_of_corpus)


def _owns_of_tasks(folder: Path) -> Callable[[str], bool]:
    made = {
        f"{name}.{ending}"
        for name in read_json(folder / "tasks.json")["tasks"]
        for ending in ("yaml", "jsonl")
    }
    return lambda name: name == "tasks.json" or name in made


TASKS = Kind(
    "a folder of tasks",
    lambda folder: {"inputs", "corpus", "tasks"} <= read_json(folder / "tasks.json").keys(),
    _owns_of_tasks,
)

PAIR = {"prompt", "completion", "file"}
PAIR_FILES = ("train.jsonl", "held_out.jsonl", "preferences.jsonl")


def _are_pairs(folder: Path) -> bool:
    found = [folder / name for name in PAIR_FILES if (folder / name).is_file()]
    rows = {path.name: _first_row(path) for path in found}
    preferred = rows.pop("preferences.jsonl", None)
    return (
        "train.jsonl" in rows
        and all(row in (None, PAIR) for row in rows.values())
        and preferred in (None, {"prompt", "chosen", "rejected", "file"})
    )


PAIRS = Kind("a folder of pairs", _are_pairs, _names(*PAIR_FILES))

PAGE = Kind("a page", lambda path: re.search(r"<title>.* · Headwater", _head(path)) is not None)


def _json_with(noun: str, *keys: str) -> Kind:
    return Kind(noun, lambda path: set(keys) <= read_json(path).keys())


RESULTS = _json_with("a file of scores", "format", "models")
DIFFERENCES = _json_with("a file of differences", "baseline", "differences")
PERPLEXITY = _json_with("a file of held-out losses", "model", "seq_len", "loss", "sources")
SAMPLES = Kind(
    "a file of samples",
    lambda path: {"prompt", "generated", "ended", "model"} <= (_first_row(path) or set()),
)
QUALITY = Kind(
    "a quality model",
    lambda path: {"format", "buckets", "most_chars"} <= (_first_row(path) or set()),
)
CARD = Kind("a model card", is_own_card)
GGUF_ORIGIN = "headwater.model"
"""Key in the metadata of a GGUF file with the name of the folder that it was made from."""


def _is_gguf(path: Path) -> bool:
    head = _head(path)
    return head.startswith("GGUF") and GGUF_ORIGIN in head


GGUF = Kind("a GGUF file", _is_gguf)
PREPARATION_PLAN = _json_with("a plan of a preparation", "preparation_plan", "array")

TEACHER_CACHE = Kind(
    "a cache of a teacher's answers",
    lambda folder: (
        {"teacher", "top_k", "order", "files"} <= read_json(folder / "manifest.json").keys()
    ),
    _names("manifest.json", "stage_*/*.bin", "stage_*/*.sums"),
)
