"""Stand-ins for what the commands of a page read and write.

They are small, and the real checks accept them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.entry import CONF_DIR
from data_pipeline.sampling.fim import KNOWN_TOKENS
from data_pipeline.store.manifest import Manifest, tokenizer_fingerprint
from model.config import ModelConfig
from model.families.folder import hf_config
from pretrain.teacher_cache.manifest import FORMAT, CacheManifest
from tests.corpora import byte_tokenizer
from tests.model.shapes import tiny

TOKENS = 10**13


def make(path: Path, kind: str) -> None:
    """Makes a stand-in: a name of MAKERS, or corpus:SOURCE,... with `@` and a vocabulary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind.startswith("corpus:"):
        sources, _, vocabulary = kind.removeprefix("corpus:").partition("@")
        corpus(path, sources.split(","), int(vocabulary or 8192))
    else:
        MAKERS[kind](path)


def corpus(folder: Path, sources: list[str], vocabulary: int) -> None:
    """Writes a manifest of sources with unlimited tokens, without its shards."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(folder / "tokenizer.json")
    about = {"file": "tokenizer.json", "vocab_size": vocabulary}
    about["sha256"] = tokenizer_fingerprint(folder / "tokenizer.json")
    splits = {
        split: {source: [{"file": f"{split}/{source}", "tokens": tokens}] for source in sources}
        for split, tokens in (("train", TOKENS), ("held_out", TOKENS // 1000))
    }
    manifest = Manifest(folder, folder.name, "made", about, "uint16", splits, {})
    (folder / "manifest.json").write_text(manifest.to_json())


def tokenizer(path: Path) -> None:
    """Writes a tokenizer.json."""
    made = byte_tokenizer()
    made.add_special_tokens(list(KNOWN_TOKENS[0]))
    made.save(str(path))


def model(path: Path) -> None:
    """Makes a Hugging Face folder without weights."""
    path.mkdir(parents=True, exist_ok=True)
    shape: ModelConfig = tiny(vocab_size=8192, hidden_size=256, num_heads=4, max_seq_len=2048)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (path / "config.json").write_text(json.dumps(hf_config(shape, ids, "float32")))
    tokenizer(path / "tokenizer.json")


def folder(path: Path) -> None:
    """Makes a folder."""
    path.mkdir(parents=True, exist_ok=True)


def tasks(path: Path) -> None:
    """Makes a folder with a task of lm-eval."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "mine.yaml").write_text("task: mine\ndataset_path: json\noutput_type: loglikelihood\n")


def run(path: Path) -> None:
    """Makes a run folder."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").touch()


def conversations(path: Path) -> None:
    """Writes rows for SFT."""
    rows = [{"prompt": f"{n} + 1?", "completion": f"{n + 1}"} for n in range(9)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def preferences(path: Path) -> None:
    """Writes rows with better and worse answers."""
    rows = [{"prompt": f"{n} + 1?", "chosen": f"{n + 1}", "rejected": "7"} for n in range(9)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def cluster(path: Path) -> None:
    """Writes a cluster's file: a copy of h100.yaml with the keys of SLURM and SkyPilot jobs."""
    known = (CONF_DIR / "cluster" / "h100.yaml").read_text()
    rented = "accelerators: H100:8, volumes: {/runs: runs}, file_mounts: {/data: s3://b/data}"
    path.write_text(f"{known}slurm: {{partition: train}}\nsky: {{{rented}}}\n")


def study(path: Path) -> None:
    """Makes the folder of a study that has begun."""
    path.mkdir(parents=True, exist_ok=True)
    study_file(path / "study.yaml")
    (path / "runs.json").write_text("{}")


def study_file(path: Path) -> None:
    """Writes a study as docs/studies.md shows one."""
    base = ["model=demo_3m", "recipe=demo", "optim=adamw_demo"]
    keys = {"kind": "grid", "base": base, "vary": ["optim.learning_rate=1e-3,3e-3"]}
    path.write_text(json.dumps(keys))


def preparation_plan(path: Path) -> None:
    """Writes a plan of a preparation."""
    array = {"tasks": 2, "cpus": 4, "memory_bytes": 1 << 30, "limits": {"encode": 600}}
    path.write_text(json.dumps({"preparation_plan": 1, "array": array}))


def teacher_cache(path: Path) -> None:
    """Makes a cache of a teacher's answers to no samples, with the tokenizer of `corpus`."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer(path / "tokenizer.json")
    fingerprint = tokenizer_fingerprint(path / "tokenizer.json")
    (path / "tokenizer.json").unlink()
    settings: dict[str, Any] = {"top_k": 64, "steps": [1, 1], "order": {"stages": []}}
    settings |= {"micro_batch_tokens": 1, "unit_tokens": 1, "precision": "fp32"}
    settings |= {name: [] for name in ("data", "contexts", "stages", "samples", "files")}
    manifest = CacheManifest(
        teacher={"path": "teacher", "fingerprint": "0" * 64},
        tokenizer=fingerprint,
        vocab_size=8192,
        **settings,
    )
    content = {"format": FORMAT, **asdict(manifest)}
    (path / "manifest.json").write_text(json.dumps(content))


MAKERS: dict[str, Callable[[Path], None]] = {
    "model": model,
    "run": run,
    "folder": folder,
    "tasks": tasks,
    "file": Path.touch,
    "tokenizer": tokenizer,
    "conversations": conversations,
    "preferences": preferences,
    "cluster": cluster,
    "study": study,
    "study_file": study_file,
    "preparation_plan": preparation_plan,
    "teacher_cache": teacher_cache,
}
