"""Writes an average as a run folder with one checkpoint, from which training continues.

The folder has the config, the order and the logs of the newest checkpoint's run, so that the same
command with another `run_dir` continues it: with the average as weights, and with the optimizer's
moments, the step and the position in the data of the newest checkpoint. Moments are not averaged:
they describe the last gradients, and their averages have no such meaning.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.planner import WriteItem

from pretrain.averages.accumulate import Average
from pretrain.averages.members import Member
from pretrain.checkpoints import files
from pretrain.checkpoints.read import WEIGHTS, Tensors
from pretrain.origin import inherit_origin
from pretrain.setup import CORPUS

AVERAGE = "average.json"
"""File of a run folder that lists the checkpoints in the average that the run started from."""
COPIED = ("config.yaml", "env.json", "order.json", "ledger.jsonl", "metrics.jsonl")
MOMENTS = "optimizer.state."
LEFT_OUT = ("files", "torch", "validation_loss", "short_lived")
"""Keys of a manifest that describe the files or the weights of the copied checkpoint."""


class LazyPlanner:
    """A planner with the only method that a storage writer calls, which computes an item's value.

    So only one tensor is in memory at a time.
    """

    def __init__(self, average: Average, moments: Tensors) -> None:
        self._average, self._moments = average, moments

    def resolve_data(self, item: WriteItem) -> Tensor:
        """Returns the average of a weight, or a tensor of the optimizer."""
        name = item.index.fqn
        if name.startswith(WEIGHTS):
            return self._average.read(name.removeprefix(WEIGHTS))
        return self._moments.read(name.removeprefix(MOMENTS))


def write_run_folder(
    folder: Path, newest: Member, average: Average, record: dict[str, Any]
) -> None:
    """Writes the run folder. record: description of the average, for AVERAGE and the manifest."""
    source = Path(newest.run)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / CORPUS).is_dir():
        shutil.copytree(source / CORPUS, folder / CORPUS)
    inherit_origin(folder, newest.run)
    (folder / AVERAGE).write_text(json.dumps(record, indent=1) + "\n")
    checkpoint = folder / "checkpoints" / f"step_{newest.step}"
    checkpoint.mkdir(parents=True)
    write_tensors(checkpoint, average, Tensors(newest.path, MOMENTS))
    about = {key: value for key, value in newest.metadata.items() if key not in LEFT_OUT}
    # A running average of the old weights would not be one of the weights that follow.
    about["hooks"] = {k: v for k, v in about.get("hooks", {}).items() if k != "Ema"}
    entries = {path.name: files.file_entry(path) for path in checkpoint.iterdir()}
    parents = [record, *about.get("parents", [])]
    about |= {"parents": parents, "torch": torch.__version__, "files": entries}
    files.write_manifest(checkpoint, about)
    files.write_durably(folder / "checkpoints" / files.LATEST, {"checkpoint": checkpoint.name})


def write_tensors(folder: Path, average: Average, moments: Tensors) -> None:
    """Writes weights and moments in the format of torch.distributed.checkpoint."""
    state = {
        f"{prefix}{name}": torch.empty((), dtype=tensors.dtypes[name]).expand(shape)
        for prefix, tensors in ((WEIGHTS, average), (MOMENTS, moments))
        for name, shape in tensors.shapes.items()
    }  # no element is stored: only shapes and dtypes are read
    planner = DefaultSavePlanner()
    planner.set_up_planner(state, is_coordinator=True)
    plans, metadata = planner.create_global_plan([planner.create_local_plan()])
    writer = FileSystemWriter(folder, thread_count=1, per_thread_copy_ahead=0)
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    lazy: Any = LazyPlanner(average, moments)
    writer.finish(metadata, [writer.write_data(plan, lazy).wait()])
