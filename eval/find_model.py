"""Resolves the setting `model`: a Hugging Face folder, a run, a step of a run, or a Hub name.

The result is always a Hugging Face folder. A run is first exported into its own folder. A Hub model
is taken from this machine's cache, or downloaded into it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from conf.errors import InputError

STEP = re.compile(r"step_(\d+)")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# Weights in formats or under names that stock `transformers` does not read.
NOT_FILES = ["*/*", "consolidated*"]


def find_model(text: str, key: str = "model") -> Path:
    """Returns the Hugging Face folder of a model.

    text: a Hugging Face folder; a run folder, for its newest checkpoint; a checkpoint of a run,
        such as `runs/demo/checkpoints/step_56`, or step_0 for the model before training; or
        `owner/name` on the Hub, optionally with `@revision`.
    key: name of the setting, for error messages.

    Raises:
        InputError: the text is none of these, or the export or download fails.
    """
    path = Path(text)
    if (path / "config.json").is_file():
        return path
    if path.parent.name == "checkpoints" and STEP.fullmatch(path.name):
        return _export(path.parent.parent, path.name, key)
    if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
        return _export(path, newest_step(path, key), key)
    if path.exists() or not HUB_NAME.fullmatch(text):
        raise InputError(
            f"{key}={text}: the folder has no config.json. Give a Hugging Face folder, a run "
            "folder, a checkpoint of a run, or owner/name on the Hub."
        )
    return _download(text, key)


def newest_step(run: Path, key: str = "run") -> str:
    """Returns the name of a run's newest complete checkpoint.

    Raises:
        InputError: the run has no checkpoint.
    """
    names = [p.parent.name for p in run.glob("checkpoints/step_*/manifest.json")]
    steps = [name for name in names if STEP.fullmatch(name)]
    if not steps:
        raise InputError(f"{key}={run}: the run has no checkpoint yet. Wait for the first one.")
    return max(steps, key=lambda name: int(name.removeprefix("step_")))


def _export(run: Path, step: str, key: str) -> Path:
    """Returns the export of a step, and creates it if it is missing or outdated."""
    out = run / "export" / step
    exported, checkpoint = out / "config.json", run / "checkpoints" / step / "manifest.json"
    if exported.is_file() and not (
        checkpoint.is_file() and checkpoint.stat().st_mtime > exported.stat().st_mtime
    ):
        return out
    command = ["pretrain", "export", f"run={run}", f"step={step.removeprefix('step_')}"]
    done = subprocess.run(
        [sys.executable, "-m", *command, f"out={out}", "overwrite=true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        reason = reason.removeprefix("error: ").rstrip(".")
        raise InputError(f"{key}={run}: {step} could not be exported ({reason}).")
    return out


def _download(text: str, key: str) -> Path:
    """Returns the cached folder of a Hub model, and downloads it if it is not cached."""
    from huggingface_hub import constants, snapshot_download

    name, _, revision = text.partition("@")

    def get(patterns: list[str], *, offline: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=patterns,
                ignore_patterns=NOT_FILES,
                local_files_only=offline,
            )
        )

    offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1"
    reason = "there is no network (HF_HUB_OFFLINE=1)"
    for is_offline in [True] if offline else [True, False]:
        try:
            folder = get(FILES, offline=is_offline)
            if not any(folder.glob("*.safetensors")):
                folder = get([*FILES, "*.bin"], offline=is_offline)
        except Exception as error:  # types vary: no network, unknown name, no permission
            reason = reason if is_offline else str(error).splitlines()[0]
            continue
        has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
        if (folder / "config.json").is_file() and has_weights:
            return folder
        reason = f"{folder} has no config.json or no weights"
    raise InputError(
        f"{key}={text}: there is no such Hugging Face folder or run, and the Hub does not provide "
        f"this model ({reason}). Check the path, or run `hf download {name}` on a machine with a "
        "network and copy its HF_HOME folder to this machine."
    )
