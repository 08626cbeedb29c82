"""The device mesh of a run, its submeshes, and sums over their ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pretrain.config import MESH


@dataclass(frozen=True)
class Layout:
    """The device mesh, with dimensions named as in MESH, and its submeshes.

    data: ranks over which weights are sharded and replicated. It has one dimension without
        replication, and two with replication. A context-parallel group also shards the weights.
    dp: all ranks that read different samples, as one dimension.
    cp: ranks that share each sequence.
    tp: tensor-parallel ranks.
    """

    mesh: DeviceMesh
    data: DeviceMesh
    dp: DeviceMesh
    cp: DeviceMesh
    tp: DeviceMesh

    def sizes(self) -> dict[str, int]:
        """Returns the size of each dimension by name."""
        return dict(zip(self.mesh.mesh_dim_names or (), self.mesh.shape, strict=True))


def make_layout(sizes: tuple[int, int, int, int], device: torch.device) -> Layout:
    """Builds the mesh with the given sizes, in the order of MESH."""
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=MESH)
    replicate, _, cp, _ = sizes
    # dp_shard and cp form one dimension, over which weights are sharded.
    weights = mesh["dp_shard", "cp"]._flatten("weights") if cp > 1 else mesh["dp_shard"]
    if replicate == 1:
        data = weights
    elif cp == 1:
        data = mesh["dp_replicate", "dp_shard"]
    elif hasattr(DeviceMesh, "_concatenate"):
        data = DeviceMesh._concatenate([mesh["dp_replicate"], weights])
    else:  # older torch looks the flattened submesh up by name
        data = mesh["dp_replicate", "weights"]
    dp = mesh["dp_replicate", "dp_shard"]._flatten("dp")
    return Layout(mesh, data, dp, mesh["cp"], mesh["tp"])


def all_reduce_sum(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """Sums a tensor in place over the ranks of a one-dimensional mesh, and returns it."""
    if mesh.size() > 1:
        dist.all_reduce(tensor, group=mesh.get_group())
    return tensor
