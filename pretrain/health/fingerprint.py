"""Computes a 64-bit fingerprint of the weights, and finds replicas that differ.

The bit patterns of each parameter are summed modulo 2^64, and the sum is multiplied by an odd
number derived from the parameter's name. The sum does not depend on how a parameter is sharded, so
every layout has the same fingerprint, and any single flipped bit changes it.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from pretrain.config import MESH
from pretrain.parallel.mesh import Layout
from pretrain.step_numbers import HostCopy

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """Returns the sum of a tensor's bit patterns modulo 2^64, as a 0-d int64 tensor."""
    return tensor.detach().view(INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


@torch.no_grad()
def local_sums(model: nn.Module) -> Tensor:
    """Returns this rank's checksums as an int64 tensor of shape (1 + len(MESH),).

    The first checksum is this rank's part of the sum over the whole model, to which each value
    contributes on one rank only. One checksum per mesh dimension follows, which is the sum over the
    parameters that are replicated along that dimension.
    """
    first = next(model.parameters())
    device = first.to_local().device if isinstance(first, DTensor) else first.device
    sums = torch.zeros(1 + len(MESH), dtype=torch.int64, device=device)
    for name, parameter in model.named_parameters():
        part = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        value = bits(part) * _factor(name)
        counted = True
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            place: list[int] = list(mesh.get_coordinate() or [])
            names = mesh.mesh_dim_names or ()
            for dimension, where, placement in zip(names, place, parameter.placements, strict=True):
                if isinstance(placement, Replicate) and dimension in MESH:
                    sums[1 + MESH.index(dimension)] += value
                    counted = counted and where == 0
        if counted:
            sums[0] += value
    return sums


def gather(sums: Tensor, world_size: int) -> HostCopy:
    """Returns the `local_sums` of all ranks, (world_size, 1 + len(MESH)), without waiting."""
    if world_size == 1:
        return HostCopy(sums[None])
    parts = [torch.empty_like(sums) for _ in range(world_size)]
    dist.all_gather(parts, sums)
    return HostCopy(torch.stack(parts))


def fingerprint(gathered: list[list[int]]) -> str:
    """Returns the fingerprint of the whole model, in hexadecimal."""
    return f"{sum(row[0] for row in gathered) % 2**64:016x}"


def unequal_replicas(
    gathered: list[list[int]], layout: Layout
) -> list[tuple[list[int], list[int]]]:
    """Returns (deviating ranks, ranks they differ from) per group of unequal replicas.

    If no value has a majority in a group, all its ranks deviate and the second list is empty.
    """
    found = []
    ranks = layout.mesh.mesh
    for index in range(len(MESH)):
        for group in ranks.movedim(index, -1).reshape(-1, ranks.shape[index]).tolist():
            values = {rank: gathered[rank][1 + index] for rank in group}
            (usual, count), *others = Counter(values.values()).most_common()
            if others:
                has_majority = 2 * count > len(group)
                wrong = [r for r in group if values[r] != usual] if has_majority else group
                found.append((wrong, [rank for rank in group if rank not in wrong]))
    return found


def _factor(name: str) -> int:
    """Returns an odd signed 64-bit number that is derived from the name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) | 1
