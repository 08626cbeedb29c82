"""Faults of ranks and networks that are slow or do not respond."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from typing import Any

from conf.errors import EXIT_HANG
from tests.conftest import ROOT
from tests.faults.matrix import Outcome, row
from tests.faults.matrix.kills import AGAIN
from tests.faults.matrix.lab import PATIENCE, STEPS, Lab, Run, check, drawn
from tests.patience import limit
from tests.ports import free_port

SOON: dict[str, Any] = {"health__step_seconds": 4, "health__pause_seconds": 20}
GRACE = 12
"""Seconds of the watchdog beyond step_seconds, to ask all ranks and to end them."""


@row(
    21,
    "a rank is stopped, or sleeps",
    "exit code 87 in bounded time, naming the rank; " + AGAIN,
    trials=6,
)
def rank_hangs(lab: Lab, trial: int) -> Outcome:
    run, random = lab.run(), drawn(21, trial)
    fault, rank = ("SIGSTOP", "sleep")[trial % 2], random.randrange(2)
    ended = run.start((fault, rank, random.randint(2, STEPS)), **SOON)
    said = ended.said + json.dumps(run.outcome())
    wrong = "" if EXIT_HANG in ended.codes else f"ended with {ended.codes}: {said[-300:]}"
    if not wrong and f"rank {rank}" not in said and rank:
        wrong = f"rank {rank} is not named: {said[-300:]}"
    return run.goes_on(wrong)


@row(23, "a rank is slow", "it is named; the run is not ended", trials=2)
def straggler(lab: Lab, trial: int) -> Outcome:
    run = lab.run()
    ended = run.start(("slow_optimizer", trial, 1), health__straggler_every_steps=4)
    wrong = check(ended, {0})
    named = {event["rank"] for event in run.events("straggler")}
    if not wrong and named != {trial}:
        wrong = f"named {named}, expected rank {trial}"
    return Outcome(wrong or run.differs(lab.whole()))


@row(26, "the network is cut", "exit code 87 or 1 in bounded time; " + AGAIN, trials=2)
def network_cut(lab: Lab, trial: int) -> Outcome:
    return _over_a_network(lab, f"sleep 0.{3 * trial}; ip -n h1 link set v1 down", ends=True)


@row(26, "the network is slow (50 ms) or loses 5%", "slower, with the right result", trials=2)
def network_slow(lab: Lab, trial: int) -> Outcome:
    bad = ("delay 50ms", "loss 5%")[trial]
    return _over_a_network(
        lab, f"ip netns exec h1 tc qdisc add dev v1 root netem {bad}", ends=False
    )


def _over_a_network(lab: Lab, fault: str, ends: bool) -> Outcome:
    """Runs two ranks in two network namespaces; their link has a fault after the first step."""
    run = lab.run()
    if not shutil.which("ip") or not shutil.which("tc"):
        return Outcome(skipped="no ip and tc here")
    slow = ("slow_optimizer", "all", 1)  # so that the fault comes before the end
    command = " ".join([sys.executable, "-m", *run.command(slow, **(SOON if ends else {}))])
    metrics = run.dir / "metrics.jsonl"
    start = "\n".join(
        f"RANK={rank} LOCAL_RANK=0 ip netns exec h{rank} {command} & r{rank}=$!" for rank in (0, 1)
    )
    script = f"""set -e
mount -t tmpfs none /run; mkdir /run/netns
ip netns add h0; ip netns add h1
ip link add v0 netns h0 type veth peer name v1 netns h1
for i in 0 1; do ip -n h$i addr add 10.9.9.$i/31 dev v$i; ip -n h$i link set v$i up
ip -n h$i link set lo up; done
export MASTER_ADDR=10.9.9.0 MASTER_PORT=29400 WORLD_SIZE=2
set +e
GLOO_SOCKET_IFNAME=v0 {start.splitlines()[0]}
GLOO_SOCKET_IFNAME=v1 {start.splitlines()[1]}
tail -s 0.05 --pid=$r0 -F {metrics} 2>/dev/null | grep -q -m1 '"kind": "train"'
{fault}; grep -c '"kind": "train"' {metrics} > {run.dir}/faulty
wait $r0; a=$?; wait $r1; echo codes=$a,$?"""
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["unshare", "-rmn", "bash", "-c", script],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=limit(PATIENCE),
        )
    except subprocess.TimeoutExpired:
        return Outcome("both ranks had to be ended", hang=True)
    if "codes=" not in done.stdout:
        return Outcome(skipped=f"no networks of its own here: {done.stderr.strip()[-120:]}")
    codes = done.stdout.rpartition("codes=")[2].strip()
    step = int((run.dir / "faulty").read_text())
    if step >= STEPS - 1:
        return Outcome(f"the fault came at step {step}: too late")
    if ends:
        bad = "0" in codes.split(",")
        wrong = f"ended with {codes} in {time.monotonic() - began:.0f} s" if bad else ""
        return run.goes_on(wrong)
    wrong = "" if codes == "0,0" else f"ended with {codes}: {done.stderr[-300:]}"
    return Outcome(wrong or run.differs(lab.whole()))


@row(
    27,
    "the port is in use, the master or a rank is missing",
    "an error within the timeout, naming host and port",
    trials=3,
)
def no_rendezvous(lab: Lab, trial: int) -> Outcome:
    run: Run = lab.run()
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as taken:
        rank = ("0", "1", "0")[trial]
        if trial:
            taken.close()
        done = subprocess.run(
            [sys.executable, "-m", *run.command(None)],
            cwd=ROOT,
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "HEADWATER_START_SECONDS": "5",
            },
            capture_output=True,
            text=True,
            timeout=limit(PATIENCE),
        )
    if done.returncode == 0 or str(port) not in done.stderr:
        return Outcome(f"ended with {done.returncode}: {done.stderr[-300:]}")
    return Outcome("it had begun" if run.last_step() else "")
