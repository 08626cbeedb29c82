"""What a slow network costs a data-parallel step, beside the plan's bytes: two processes in two
networks of their own, joined by a cable, without a limit and at 1 Gbit/s (`tc`).

On CPUs torch's FSDP2 waits for each reduction (on GPUs it has a stream for them), so all of it is
exposed here: the time that the limit adds must be that of the plan's bytes at that rate. Needs the
right to make networks (`unshare -rn`).

    python benchmarks/slow_link.py [--mbit 1000] [--steps 8]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cpu_training import SEQ, batches, small_model
from benchmarks.machine import machine
from benchmarks.sides import SIDES, Work

SEQUENCES = 2


def main() -> None:
    """Starts both processes, or is one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=8, help="at each of both speeds")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/slow_link.json"))
    options = parser.parse_args()
    if options.rank is not None:
        train(options)
        return
    start = f"{sys.executable} {__file__} --mbit {options.mbit} --steps {options.steps}"
    script = f"""set -e
mount -t tmpfs none /run; mkdir /run/netns
for i in 0 1; do ip netns add h$i; ip -n h$i link set lo up; done
ip link add v0 netns h0 type veth peer name v1 netns h1
for i in 0 1; do ip -n h$i addr add 10.9.9.$i/31 dev v$i; ip -n h$i link set v$i up; done
export MASTER_ADDR=10.9.9.0 MASTER_PORT=29400 WORLD_SIZE=2 OMP_NUM_THREADS=1
RANK=1 LOCAL_RANK=1 GLOO_SOCKET_IFNAME=v1 ip netns exec h1 {start} --rank 1 &
RANK=0 LOCAL_RANK=0 GLOO_SOCKET_IFNAME=v0 ip netns exec h0 {start} --rank 0 --out {options.out}
wait"""
    subprocess.run(["unshare", "-rmn", "bash", "-c", script], check=True, timeout=600)


def train(options: argparse.Namespace) -> None:
    """Steps without a limit, then with it; rank 0 writes the figures."""
    import torch.distributed as dist

    from launch.plan.traffic import traffic
    from pretrain.config import ParallelConfig

    model = small_model()
    step = SIDES["ours"](Work(model, SEQUENCES, SEQ, processes=2))
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
    if options.rank:
        return
    parallel = ParallelConfig(dp_shard=2, micro_batch_tokens=SEQUENCES * SEQ)
    sent = sum(part.sent(2) for part in traffic(model, parallel, SEQ, 2 * SEQUENCES * SEQ))
    medians = {name: median(values) for name, values in seconds.items()}
    figures = {
        "machine": machine(),
        "mbit": options.mbit,
        "bytes_a_rank_sends_by_the_plan": sent,
        "seconds_by_the_plan": sent * 8 / (options.mbit * 1e6),
        "seconds_that_the_limit_adds": medians["limited"] - medians["no limit"],
        "median_step_seconds": medians,
    }
    text = json.dumps(figures, indent=1)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + os.linesep)


if __name__ == "__main__":
    main()
