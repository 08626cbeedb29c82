"""The state that a run starts from: its newest checkpoint, or the weights of step 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model.families import family_named
from model.families.folder import HFWeights, read_config
from model.folding import unfolded
from model.init import initial_value
from model.network import Decoder
from pretrain.branches.start import checkpoint_of_trunk, known_on_all_ranks
from pretrain.branches.trunk import Trunk
from pretrain.checkpoints import read
from pretrain.checkpoints.find import latest_common_checkpoint
from pretrain.config import PretrainConfig
from pretrain.model_choice import check_initial
from pretrain.parallel import materialize
from pretrain.processes import Processes


class InitialWeights:
    """The weights of step 0: random values, or those of the Hugging Face folder `init_from`.

    changes: one sentence per setting in which the run's model differs from that of the folder.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.weights: HFWeights | None = None
        self.changes: list[str] = []
        if config.init_from:
            folder = Path(config.init_from)
            self.changes = check_initial(read_config(folder), config.model, str(folder))
            self.weights = HFWeights(folder, family_named(config.model.architecture))

    def value(self, name: str, shape: torch.Size) -> torch.Tensor:
        """Returns the full value of a parameter."""
        if self.weights is None:
            return initial_value(name, shape, self.config.model, self.config.seed)
        return unfolded(name, self.weights.read(name), self.config.model)


@dataclass
class InitialState:
    """Either a checkpoint or initial weights; the field of the other is None.

    metadata: metadata of the checkpoint.
    trunk: the trunk if the run is a branch, else None.
    at_fork: whether the checkpoint is that of the trunk.
    """

    checkpoint: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    weights: InitialWeights | None = None
    trunk: Trunk | None = None
    at_fork: bool = False

    @classmethod
    def find(cls, config: PretrainConfig, folder: Path, processes: Processes) -> InitialState:
        """Returns the newest checkpoint that all ranks can read, or else the weights of step 0.

        A branch without a checkpoint starts from that of its trunk.
        """
        found = latest_common_checkpoint(folder, processes, config.checkpoint.copy_to)
        trunk = known_on_all_ranks(config, processes) if config.branch_from else None
        if found is not None:
            return cls(*found, trunk=trunk)
        if trunk is None:
            return cls(weights=InitialWeights(config))
        return cls(*checkpoint_of_trunk(trunk, folder.parent, processes), None, trunk, True)

    @property
    def step(self) -> int:
        """Returns the number of steps done."""
        return int(self.metadata.get("step", 0))

    @property
    def parents(self) -> list[dict[str, Any]]:
        """Returns the runs that the run descends from, the nearest first."""
        if self.trunk is not None:
            return self.trunk.parents
        return list(self.metadata.get("parents", []))

    def load(self, model: Decoder, optimizer: torch.optim.Optimizer) -> None:
        """Loads the weights and optimizer states of the checkpoint, if there is one."""
        if self.checkpoint is not None:
            read.load(self.checkpoint, model, optimizer)

    def materialize(self, model: Decoder, device: torch.device) -> None:
        """Allocates a sharded meta model on the device, and at step 0 also initializes it."""
        if self.weights is not None:
            materialize(model, device, self.weights.value)
        else:
            model.to_empty(device=device)
            model.tie()

    def documents(self, sources: Sequence[str]) -> dict[str, int]:
        """Returns, per source, the number of documents that were trained on to their end."""
        past = self.metadata["position"]["sources"] if self.metadata else {}
        return {source: past.get(source, {}).get("documents", 0) for source in sources}
