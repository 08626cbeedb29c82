"""What `model=` may name: a Hugging Face folder, a run, a step of a run, or a name on the Hub.

A run is exported first, into its own folder; a model of the Hub is taken from the cache of this
machine, or fetched into it. What comes out is always a folder, so all else is the same for all.
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
# Weights in other formats and under other names, which stock `transformers` does not read.
NOT_FILES = ["*/*", "consolidated*"]


def find_model(text: str, key: str = "model") -> Path:
    """The folder of a model.

    text: a Hugging Face folder; a run folder, for its newest checkpoint; one of a run's
        checkpoints, `runs/demo/checkpoints/step_56`, or step_0 for the model before training;
        `owner/name` on the Hub, with `@revision` where it matters.
    key: of the setting, in errors.

    Raises:
        InputError: it is none of them, or cannot be had.
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
            f"{key}={text} is no Hugging Face folder: it has no config.json; expected such a "
            "folder, a run folder, one of its checkpoints, or owner/name on the Hub."
        )
    return _fetch(text, key)


def newest_step(run: Path, key: str = "run") -> str:
    """The name of a run's newest whole checkpoint; raises InputError where there is none."""
    names = [p.parent.name for p in run.glob("checkpoints/step_*/manifest.json")]
    steps = [name for name in names if STEP.fullmatch(name)]
    if not steps:
        raise InputError(f"{key}={run} has no checkpoint yet: wait for one.")
    return max(steps, key=lambda name: int(name.removeprefix("step_")))


def _export(run: Path, step: str, key: str) -> Path:
    """The step as a folder inside of the run, made where it is not there or older."""
    out = run / "export" / step
    made, checkpoint = out / "config.json", run / "checkpoints" / step / "manifest.json"
    if made.is_file() and not (
        checkpoint.is_file() and checkpoint.stat().st_mtime > made.stat().st_mtime
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
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"{key}={run}, {step} could not be exported: {reason}")
    return out


def _fetch(text: str, key: str) -> Path:
    """The folder of a model of the Hub, in the cache."""
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
        except Exception as error:  # of many kinds: no network, no such name, no permission
            reason = reason if is_offline else str(error).splitlines()[0]
            continue
        has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
        if (folder / "config.json").is_file() and has_weights:
            return folder
        reason = f"{folder} holds no config.json with weights"
    raise InputError(
        f"{key}={text} is no Hugging Face folder and no run, and no model of the Hub that can be "
        f"had: {reason}; check the path, or run `hf download {name}` where there is a network and "
        "copy the folder HF_HOME here."
    )
