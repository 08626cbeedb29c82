"""Compares and times the nodes of a job just before its first step.

All ranks run `torchrun ... -m launch.slurm.node_check FOLDER GPUS GIB`. Each node reports its GPUs,
disk, code and packages, and measures a matrix product and an all-reduce of its own ranks. If any
rank has no GPU, nothing is measured: the others would wait for it. `FOLDER/nodes.json` holds the
results. A wrong or slow node is printed with the reason and written
to `FOLDER/exclude`. The check then exits with 75, and the job is requeued without that node.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import conf
from conf.errors import EXIT_STORAGE
from conf.machine import package_versions

PACKAGES = ("torch", "numpy", "hydra-core", "safetensors", "torchao", "flash-attn")
SLOW_RATIO = 1.5
"""A node is slow if it takes more than the median time times this ratio, plus a tolerance."""
TOLERANCE_SECONDS, TOLERANCE_SECONDS_CPU = 0.3e-3, 0.1
"""Differences in time below these, on GPUs and on CPUs, are noise. Shared CPUs vary more."""
MIN_FREE_GIB = 1.0
MAX_CLOCK_SKEW_SECONDS = 5.0
TIMEOUT = timedelta(minutes=5)


@dataclass
class Node:
    """Properties and measurements of a node, reported by one rank.

    matmul_seconds, all_reduce_seconds: 0 if they were not measured.
    """

    name: str
    gpus: int
    gpu_memory_gib: float
    free_gib: float
    clock: float
    code: str
    packages: dict[str, str]
    matmul_seconds: float
    all_reduce_seconds: float


def find_problems(
    nodes: list[Node], gpus: int, gpu_memory_gib: float, cuda: bool
) -> dict[str, str]:
    """Returns the wrong and the slow nodes with their reasons; the majority counts as right.

    Args:
        nodes: one entry per node, with the worst values of its ranks.
        gpus: expected number of GPUs per node.
        gpu_memory_gib: expected memory per GPU, in GiB.
        cuda: whether the measurements ran on GPUs.
    """
    problems: dict[str, list[str]] = {node.name: [] for node in nodes}
    tolerance = TOLERANCE_SECONDS if cuda else TOLERANCE_SECONDS_CPU
    codes = [node.code for node in nodes]
    code = max(codes, key=codes.count)
    packages = [json.dumps(node.packages, sort_keys=True) for node in nodes]
    majority = json.loads(max(packages, key=packages.count))
    clock = statistics.median(node.clock for node in nodes)
    for node in nodes:
        report = problems[node.name].append
        if node.gpus < gpus:
            report(f"{node.gpus} GPUs instead of {gpus}")
        # The advertised size of a card is rounded up, and the driver takes a part of it.
        elif gpus and node.gpu_memory_gib < 0.9 * gpu_memory_gib:
            report(f"{node.gpu_memory_gib:.0f} GiB per GPU instead of {gpu_memory_gib:.0f}")
        if node.free_gib < MIN_FREE_GIB:
            report(f"only {node.free_gib:.1f} GiB free for temporary files")
        if abs(node.clock - clock) > MAX_CLOCK_SKEW_SECONDS:
            report(f"clock skew {node.clock - clock:+.0f} s from the median node")
        if node.code != code:
            report("different code than the other nodes")
        for name in sorted(majority | node.packages):
            if majority.get(name) != node.packages.get(name):
                report(f"{name} {node.packages.get(name)} instead of {majority.get(name)}")
        for what in ("matmul", "all_reduce"):
            seconds = getattr(node, f"{what}_seconds")
            median = statistics.median_low(getattr(other, f"{what}_seconds") for other in nodes)
            if seconds > SLOW_RATIO * median + tolerance:
                report(f"{what} takes {seconds * 1e3:.1f} ms instead of {median * 1e3:.1f}")
    return {name: "; ".join(found) for name, found in problems.items() if found}


def code_digest() -> str:
    """Returns a digest of the Python files from which this process imports the project."""
    root = Path(conf.__file__).parent.parent
    total = hashlib.sha256()
    for package in ("conf", "data_pipeline", "model", "pretrain"):
        for path in sorted((root / package).rglob("*.py")):
            total.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:12]


def node_name() -> str:
    """Returns the name of this node in SLURM, or else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def describe_node(device: torch.device | None) -> Node:
    """Returns the properties of this node, without measurements.

    device: device of this rank; None if there is no GPU for it.
    """
    cuda = device is not None and device.type == "cuda"
    packages = package_versions(PACKAGES)
    if torch.version.cuda:
        packages["cuda"] = torch.version.cuda
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else 0
    return Node(
        name=node_name(),
        gpus=torch.cuda.device_count(),
        gpu_memory_gib=memory / 2**30,
        free_gib=shutil.disk_usage(os.environ.get("TMPDIR", "/tmp")).free / 2**30,
        clock=0.0,
        code=code_digest(),
        packages=packages,
        matmul_seconds=0.0,
        all_reduce_seconds=0.0,
    )


def measure(node: Node, device: torch.device, local: dist.ProcessGroup) -> None:
    """Adds the measurements to the description of this node; all of its ranks must call it."""
    cuda = device.type == "cuda"
    size, length = (8192, 64 << 20) if cuda else (512, 1 << 18)
    factor = torch.ones(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    summed = torch.zeros(length, device=device)
    node.matmul_seconds = best_time(lambda: factor @ factor, cuda)
    node.all_reduce_seconds = best_time(lambda: dist.all_reduce(summed, group=local), cuda)


def best_time(work, cuda: bool) -> float:  # type: ignore[no-untyped-def]
    """Returns the seconds of the fastest of five calls, after a warm-up call."""
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def slowest_ranks(nodes: list[Node]) -> list[Node]:
    """Returns one entry per node, with the worst values of its ranks."""
    kept: dict[str, Node] = {}
    for node in nodes:
        seen = kept.setdefault(node.name, node)
        seen.matmul_seconds = max(seen.matmul_seconds, node.matmul_seconds)
        seen.all_reduce_seconds = max(seen.all_reduce_seconds, node.all_reduce_seconds)
        seen.gpu_memory_gib = min(seen.gpu_memory_gib, node.gpu_memory_gib)
    return [kept[name] for name in sorted(kept)]  # in a tie of votes, the first node is right


def device_of_rank(gpus: int) -> torch.device | None:
    """Returns the device of this rank, the CPU if the job uses no GPUs.

    Returns None if this node has no GPU for the rank.
    """
    if not gpus:
        return torch.device("cpu")
    index = int(os.environ["LOCAL_RANK"])
    if index >= torch.cuda.device_count():
        return None
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def check(folder: Path, gpus: int, gpu_memory_gib: float) -> int:
    """Runs the check on all ranks and returns the exit code, which they all share."""
    device = device_of_rank(gpus)
    dist.init_process_group("gloo", timeout=TIMEOUT)  # NCCL would fail on a rank without a GPU
    rank = dist.get_rank()
    reports: list[tuple[str, bool]] = [("", False)] * dist.get_world_size()
    dist.all_gather_object(reports, (node_name(), device is not None))
    names = [name for name, _ in reports]
    node = describe_node(device)
    measured = all(able for _, able in reports)
    if device is not None and measured:
        groups = {
            name: dist.new_group(
                [r for r, other in enumerate(names) if other == name],
                timeout=TIMEOUT,
                backend="nccl" if gpus else "gloo",
            )
            for name in dict.fromkeys(names)
        }
        measure(node, device, groups[node_name()])
    dist.barrier()
    node.clock = time.time()  # ranks leave a barrier within milliseconds
    every: list[Node] = [node] * len(names)
    dist.all_gather_object(every, node)
    nodes = slowest_ranks(every)
    problems = find_problems(nodes, gpus, gpu_memory_gib, cuda=gpus > 0)
    if rank == 0:
        for one in nodes:
            times = (
                f"matmul {one.matmul_seconds * 1e3:.1f} ms, "
                f"all-reduce {one.all_reduce_seconds * 1e3:.1f} ms"
            )
            print(
                f"node {one.name}: {one.gpus} GPUs, {times if measured else 'not timed'}, "
                f"{problems.get(one.name, 'no problems')}",
                flush=True,
            )
        (folder / "nodes.json").write_text(
            json.dumps({"nodes": [asdict(one) for one in nodes], "problems": problems}, indent=1)
        )
        if problems:
            with (folder / "exclude").open("a") as file:
                file.writelines(f"{name}\n" for name in problems)
    dist.barrier()
    dist.destroy_process_group()
    return EXIT_STORAGE if problems else 0


if __name__ == "__main__":
    sys.exit(check(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
