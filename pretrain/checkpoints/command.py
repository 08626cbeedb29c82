"""The command `python -m pretrain checkpoints`, which lists, verifies or exports checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from conf.chat import ChatTemplate
from conf.errors import InputError
from conf.model_card import CardConfig
from data_pipeline.store import storage
from pretrain.checkpoints import files, mirror
from pretrain.checkpoints.files import CheckpointError
from pretrain.config import one_of
from pretrain.export import DTYPES, ExportConfig, export


@dataclass
class CheckpointsConfig:
    """Configuration of the command.

    dir: a run folder, its folder of checkpoints, or the URL of their mirror.
    do: the action: list (checks names and sizes of files), verify (reads all bytes), or export.
    step: the step to export: `latest`, or a step with a checkpoint; 0 is the model before training.
    weights: the weights that do=export writes: `trained`, or `ema` for the run's average.
    out: the folder that do=export writes.
    dtype: dtype of the exported weights, `bfloat16` or `float32`.
    chat_template, card: same as for `pretrain export`.
    overwrite: whether do=export replaces `out` if it is a model folder that Headwater wrote.
    data: the corpus of the run, which do=export needs only if the run folder has no copy of the
        tokenizer and the corpus has moved.
    """

    dir: str = MISSING
    do: str = "list"
    step: str = "latest"
    weights: str = "trained"
    out: str | None = None
    dtype: str = "bfloat16"
    chat_template: ChatTemplate | None = None
    card: CardConfig = field(default_factory=CardConfig)
    overwrite: bool = False
    data: str | None = None

    def __post_init__(self) -> None:
        one_of("do", self.do, ("list", "verify", "export"))
        one_of("dtype", self.dtype, tuple(DTYPES))
        if self.do == "export" and self.out is None:
            raise InputError("do=export: an output folder is required. Add out=<folder>.")
        if self.do != "export" and self.out is not None:
            raise InputError(
                f"out={self.out}: do={self.do} writes no output. Remove out, or use do=export."
            )


Row = tuple[str, dict[str, Any] | None, str | None]
"""Name of a checkpoint, its manifest (None if unreadable), and what is wrong with it (or None)."""


def checkpoints(config: CheckpointsConfig) -> None:
    """Runs the command. Raises CheckpointError if a committed checkpoint is damaged."""
    if config.do == "export":
        assert config.out is not None
        run = run_folder(config.dir)
        keys = ("step", "weights", "out", "dtype", "chat_template", "card", "overwrite", "data")
        export(ExportConfig(str(run), **{key: getattr(config, key) for key in keys}))
        return
    rows = list(_remote(config) if storage.is_remote(config.dir) else _local(config))
    if not rows:
        raise InputError(
            f"dir={config.dir}: there is no checkpoint. Give a run folder, or the URL of a mirror."
        )
    print(table(rows, "verified" if config.do == "verify" else "sizes match"))
    bad = [problem for name, _, problem in rows if problem and files.step_of(name) is not None]
    if bad:
        raise CheckpointError(
            f"dir={config.dir}: {len(bad)} of {len(rows)} checkpoints are damaged. The newest of "
            f"them: {bad[0]}"
        )


def table(rows: list[Row], good: str) -> str:
    """Formats the rows as a table. good: verdict to show for checkpoints without a problem."""
    cells = [("checkpoint", "tokens", "GB", "held-out loss", "kind", "layout", "verdict")]
    for name, about, problem in rows:
        about = about or {}
        size = sum(entry["bytes"] for entry in about.get("files", {}).values())
        loss = about.get("validation_loss")
        cells.append(
            (
                name,
                f"{about['tokens']:,}" if "tokens" in about else "",
                f"{size / 1e9:.3f}" if size else "",
                f"{loss:.4f}" if loss is not None else "",
                "short-lived" if about.get("short_lived") else "",
                " ".join(f"{k}={v}" for k, v in about.get("layout", {}).items() if v > 1),
                problem or good,
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def run_folder(folder: str) -> Path:
    """Returns the run folder, given it or its checkpoint folder. Raises InputError for a URL."""
    if storage.is_remote(folder):
        raise InputError(
            f"dir={folder}: a mirror does not have the run's config, which do=export needs. Give "
            "the run folder. If its checkpoints are missing, start the run again with "
            "checkpoint.copy_to, which restores them."
        )
    path = Path(folder)
    return path.parent if path.name == "checkpoints" else path


def _local(config: CheckpointsConfig) -> list[Row]:
    folder = run_folder(config.dir) / "checkpoints"
    check: Callable[[Path], str | None] = files.verify if config.do == "verify" else files.verdict
    rows: list[Row] = []
    for path in files.checkpoints_in(folder):
        rows.append((path.name, _readable(partial(files.read_manifest, path)), check(path)))
    for path in files.quarantined_in(folder):
        about = _readable(partial(files.read_manifest, path))
        rows.append((path.name, about, "quarantined: found damaged when the run was started"))
    return rows


def _remote(config: CheckpointsConfig) -> list[Row]:
    rows: list[Row] = []
    for step in mirror.steps(config.dir):
        about = _readable(partial(mirror.manifest, config.dir, step))
        problem = mirror.verify(config.dir, step) if config.do == "verify" else None
        rows.append((f"step_{step}", about, problem))
    return rows


def _readable(read: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return read()
    except (OSError, ValueError):
        return None
