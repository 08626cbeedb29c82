"""Measures what a slow network costs a data-parallel step, compared with the plan's prediction.

Two processes run in two network namespaces joined by a virtual cable, without a limit and at
1 Gbit/s (`tc`): with blocking collectives, as torch's FSDP2 has them on CPUs, and with collectives
that overlap with computation. Without overlap, the limit should add the time of the plan's bytes at
that rate; with overlap, the time that the plan calls exposed. Needs permission to create network
namespaces (`unshare -rn`).

    python benchmarks/slow_link.py [--mbit 1000] [--steps 8]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cpu_training import SEQ, batches, small_model
from benchmarks.figures import write_results
from benchmarks.machine import machine
from benchmarks.sides import SIDES, Work

SEQUENCES = 2
KINDS = ("blocking", "overlapped")


def main() -> None:
    """Starts both processes of both kinds, or is one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=8, help="at each of both speeds")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/slow_link.json"))
    options = parser.parse_args()
    if options.rank is not None:
        train(options)
        return
    figures = {"machine": machine(), "mbit": options.mbit}
    for kind in KINDS:
        figures[kind] = of_kind(kind, options)
    write_results(options.out, figures | by_the_plan(figures, options.mbit))


def of_kind(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Returns the median seconds per step without and with the limit."""
    with tempfile.NamedTemporaryFile() as out:
        start = f"{sys.executable} {__file__} --mbit {options.mbit} --steps {options.steps}"
        start += f" --kind {kind}"
        script = f"""set -e
mount -t tmpfs none /run; mkdir /run/netns
for i in 0 1; do ip netns add h$i; ip -n h$i link set lo up; done
ip link add v0 netns h0 type veth peer name v1 netns h1
for i in 0 1; do ip -n h$i addr add 10.9.9.$i/31 dev v$i; ip -n h$i link set v$i up; done
export MASTER_ADDR=10.9.9.0 MASTER_PORT=29400 WORLD_SIZE=2 OMP_NUM_THREADS=1
RANK=1 LOCAL_RANK=1 GLOO_SOCKET_IFNAME=v1 ip netns exec h1 {start} --rank 1 &
RANK=0 LOCAL_RANK=0 GLOO_SOCKET_IFNAME=v0 ip netns exec h0 {start} --rank 0 --out {out.name}
wait"""
        subprocess.run(["unshare", "-rmn", "bash", "-c", script], check=True, timeout=600)
        return json.loads(Path(out.name).read_text())


def train(options: argparse.Namespace) -> None:
    """Takes steps without the limit, then with it; rank 0 writes the figures."""
    import torch.distributed as dist

    import pretrain.parallel

    if options.kind == "blocking":
        pretrain.parallel.overlap_on_cpu = lambda *_, **__: None
    step = SIDES["ours"](Work(small_model(), SEQUENCES, SEQ, processes=2))
    stream = batches()
    seconds: dict[str, list[float]] = {"no limit": [], "limited": []}
    for name, values in seconds.items():
        if name == "limited":
            rate = ["rate", f"{options.mbit}mbit", "burst", "1mb", "latency", "400ms"]
            device = f"v{options.rank}"
            subprocess.run(["tc", "qdisc", "add", "dev", device, "root", "tbf", *rate], check=True)
        for number in range(options.steps + 1):
            tokens, labels = (part[:SEQUENCES] for part in next(stream))
            dist.barrier()
            began = time.perf_counter()
            float(step(tokens, labels))
            if number:
                values.append(time.perf_counter() - began)
    dist.destroy_process_group()
    if not options.rank:
        medians = {name: median(values) for name, values in seconds.items()}
        medians["added"] = medians["limited"] - medians["no limit"]
        options.out.write_text(json.dumps(medians))


def by_the_plan(figures: dict[str, Any], mbit: int) -> dict[str, Any]:
    """Returns the bytes per rank, and the time that the limit adds without and with overlap."""
    from launch.plan.cluster import ClusterConfig
    from launch.plan.speed import Step, StepTime, exposed_seconds
    from launch.plan.traffic import traffic
    from pretrain.config import ParallelConfig

    model, tokens = small_model(), 2 * SEQUENCES * SEQ
    parallel = ParallelConfig(dp_shard=2, micro_batch_tokens=SEQUENCES * SEQ)
    sent = sum(part.sent(2) for part in traffic(model, parallel, SEQ, tokens))
    cable = ClusterConfig(
        name="cable",
        gpu="none",
        nodes=2,
        gpus_per_node=1,
        gpu_memory_gib=1,
        bf16_tflops=1,
        memory_gb_s=1,
        intra_node_gb_s=1,
        inter_node_gb_s=mbit / 8000,
    )
    computed = StepTime(figures["overlapped"]["no limit"], 0.0, 0.0, 0.0, 0.0)
    return {
        "planned_bytes_sent_per_rank": sent,
        "seconds_by_the_plan": {
            "blocking": sent * 8 / (mbit * 1e6),
            "overlapped": exposed_seconds(
                Step(model, SEQ, tokens, "bf16", parallel), cable, computed
            ),
        },
    }


if __name__ == "__main__":
    main()
