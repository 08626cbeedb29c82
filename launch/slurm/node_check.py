"""`torchrun ... -m launch.slurm.node_check FOLDER GPUS GIB`: seconds before the first step, by all
ranks of a job. Each node states its GPUs, disk, code and packages, and is timed in a matrix product
and an all-reduce of its own ranks; `FOLDER/nodes.json` has all of it. A node that is wrong or slow
is named in one line, written into `FOLDER/exclude`, and ends the check with 75: the job is requeued
without it.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed as dist

import conf
from conf.errors import EXIT_STORAGE

PACKAGES = ("torch", "numpy", "hydra-core", "safetensors", "torchao", "flash-attn")
SLOW = 1.5
"""A node is slow where it takes this times the median of all nodes, and a bit more."""
MORE_SECONDS, MORE_SECONDS_CPU = 0.3e-3, 0.1
"""Shorter differences are noise; CPUs of a test or a laptop are shared, and say little."""
MIN_FREE_GIB = 1.0
MAX_CLOCK_SECONDS = 5.0
TIMEOUT = timedelta(minutes=5)


@dataclass
class Node:
    """What one rank says of its node; times in seconds."""

    name: str
    gpus: int
    gpu_memory_gib: float
    free_gib: float
    clock: float
    code: str
    packages: dict[str, str]
    matmul_seconds: float
    all_reduce_seconds: float


def judge(nodes: list[Node], gpus: int, gpu_memory_gib: float, cuda: bool) -> dict[str, str]:
    """Names the wrong and the slow, with the reason. nodes: the slowest rank of each. What most
    nodes have is right."""
    problems: dict[str, list[str]] = {node.name: [] for node in nodes}
    more = MORE_SECONDS if cuda else MORE_SECONDS_CPU
    codes = [node.code for node in nodes]
    code = max(codes, key=codes.count)
    packages = [json.dumps(node.packages, sort_keys=True) for node in nodes]
    usual = json.loads(max(packages, key=packages.count))
    clock = statistics.median(node.clock for node in nodes)
    for node in nodes:
        say = problems[node.name].append
        if node.gpus < gpus:
            say(f"{node.gpus} GPUs, expected {gpus}")
        # A card's own name for its size is rounded up, and the driver takes a share.
        elif gpus and node.gpu_memory_gib < 0.9 * gpu_memory_gib:
            say(f"{node.gpu_memory_gib:.0f} GiB a GPU, expected {gpu_memory_gib:.0f}")
        if node.free_gib < MIN_FREE_GIB:
            say(f"{node.free_gib:.1f} GiB free for temporary files")
        if abs(node.clock - clock) > MAX_CLOCK_SECONDS:
            say(f"its clock is {node.clock - clock:+.0f} s off")
        if node.code != code:
            say("other code")
        for name in sorted(usual | node.packages):
            if usual.get(name) != node.packages.get(name):
                say(f"{name} {node.packages.get(name)}, elsewhere {usual.get(name)}")
        for what in ("matmul", "all_reduce"):
            taken = getattr(node, f"{what}_seconds")
            middle = statistics.median_low(getattr(other, f"{what}_seconds") for other in nodes)
            if taken > SLOW * middle + more:
                say(f"{what} takes {taken * 1e3:.1f} ms, elsewhere {middle * 1e3:.1f}")
    return {name: "; ".join(said) for name, said in problems.items() if said}


def code_digest() -> str:
    """Of the Python files that this process imports the project from."""
    root = Path(conf.__file__).parent.parent
    total = hashlib.sha256()
    for package in ("conf", "data_pipeline", "model", "pretrain"):
        for path in sorted((root / package).rglob("*.py")):
            total.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:12]


def node_name() -> str:
    """As SLURM calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def look(device: torch.device, local: dist.ProcessGroup) -> Node:
    """What is here. The ranks of the node call it together."""
    cuda = device.type == "cuda"
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    if cuda:
        packages["cuda"] = str(torch.version.cuda)
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else 0
    size, length = (8192, 64 << 20) if cuda else (512, 1 << 18)
    factor = torch.ones(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    summed = torch.zeros(length, device=device)
    return Node(
        name=node_name(),
        gpus=torch.cuda.device_count() if cuda else 0,
        gpu_memory_gib=memory / 2**30,
        free_gib=shutil.disk_usage(os.environ.get("TMPDIR", "/tmp")).free / 2**30,
        clock=0.0,
        code=code_digest(),
        packages=packages,
        matmul_seconds=best_time(lambda: factor @ factor, cuda),
        all_reduce_seconds=best_time(lambda: dist.all_reduce(summed, group=local), cuda),
    )


def best_time(work, cuda: bool, times: int = 5) -> float:  # type: ignore[no-untyped-def]
    """Seconds of the fastest of several calls, after one that warms up."""
    taken = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def slowest(nodes: list[Node]) -> list[Node]:
    """One for each name, with the worst of its ranks."""
    kept: dict[str, Node] = {}
    for node in nodes:
        seen = kept.setdefault(node.name, node)
        seen.matmul_seconds = max(seen.matmul_seconds, node.matmul_seconds)
        seen.all_reduce_seconds = max(seen.all_reduce_seconds, node.all_reduce_seconds)
        seen.gpu_memory_gib = min(seen.gpu_memory_gib, node.gpu_memory_gib)
    return [kept[name] for name in sorted(kept)]  # of equal votes, the first node's counts


def check(folder: Path, gpus: int, gpu_memory_gib: float) -> int:
    """Runs the check on all ranks; returns the exit code, the same on each."""
    cuda = gpus > 0 and torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda and device.index < torch.cuda.device_count():
        torch.cuda.set_device(device)
    elif cuda:  # fewer than expected, which is to be said, not to end in a traceback
        device, cuda = torch.device("cpu"), False
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
    rank = dist.get_rank()
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, node_name())
    groups = {
        name: dist.new_group([r for r, other in enumerate(names) if other == name])
        for name in dict.fromkeys(names)
    }
    node = look(device, groups[node_name()])
    dist.barrier()
    node.clock = time.time()  # ranks leave a barrier within milliseconds
    every: list[Node] = [node] * len(names)
    dist.all_gather_object(every, node)
    nodes = slowest(every)
    problems = judge(nodes, gpus, gpu_memory_gib, cuda)
    if rank == 0:
        for one in nodes:
            print(
                f"node {one.name}: {one.gpus} GPUs, matmul {one.matmul_seconds * 1e3:.1f} ms, "
                f"all-reduce {one.all_reduce_seconds * 1e3:.1f} ms, "
                f"{problems.get(one.name, 'fine')}",
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
