"""Compares training throughput on a CPU with other trainers, for a model of 19M parameters.

Each side is a separate process. The sides take turns of a few steps, A B C A B C, while the others
wait. Reported are the median seconds per step, and the loss of the last step, which shows that all
did the same work. A peer that cannot be imported is skipped and named; peers that conflict with the
pinned packages run in a separate environment (`make peers`). All sides compute in the machine's
best precision, or in the requested one.

    python benchmarks/cpu_training.py [--sides "ours;transformers"] [--rounds 10] [--precision fp32]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from benchmarks.sides import SIDES, Work, interpreter, missing

if TYPE_CHECKING:
    from model.config import ModelConfig

BATCH, SEQ, VOCAB, WINDOW = 8, 512, 8192, 256
WARM_UP = 3
TWO = "ours, two processes"
NAMES = (
    "ours",
    "ours, compiled",
    TWO,
    "transformers",
    "transformers, compiled",
    "nanogpt",
    "nanogpt, compiled",
    "litgpt",
)


def main() -> None:
    """Starts the sides, gives them turns, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default=";".join(NAMES), help="which, in the order of turns")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turn", type=int, default=5, help="steps of a turn")
    parser.add_argument("--limit", type=float, default=240, help="seconds: no round after them")
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="auto: bf16 where the hardware multiplies it, else fp32",
    )
    parser.add_argument("--side", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="of the first side, to stdout")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_training.json"))
    options = parser.parse_args()
    if options.precision == "auto":
        from conf.machine import fitting_precision, processor

        options.precision = fitting_precision(processor("cpu"))
    if options.side:
        serve(options.side, options.precision)
        return
    names = options.sides.split(";")
    if options.profile:
        profile(names[0], options.turn, options.precision)
        return
    without = {name: missing(kind(name)) for name in names if interpreter(kind(name)) is None}
    figures = compare([name for name in names if name not in without], options)
    figures["left_out"] = without
    write_results(options.out, figures, table(figures))


def kind(name: str) -> str:
    """Returns a side's name without its suffix for compilation or processes."""
    return name.split(",")[0]


def compare(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Returns median seconds per step of all sides, without the first steps, which compile."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(side_process(name, options.precision)) for name in names}
        for name, process in sides.items():
            take(name, process, 0)  # all have started before one is timed
        began = time.perf_counter()
        for _ in range(options.rounds):
            if time.perf_counter() - began > options.limit:
                break
            for name, process in sides.items():
                answer = take(name, process, options.turn)
                seconds[name] += answer["seconds"]
                losses[name] += answer["losses"]
    from model.flops import flops_per_token
    from pretrain.hardware import compute_dtype, peak_flops

    medians = {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
    peak, source = peak_flops(torch.device("cpu"), compute_dtype(options.precision))
    return {
        "precision": options.precision,
        "machine": machine(),
        "shape": {"batch": BATCH, "seq_len": SEQ, **vars(small_model())},
        "flops_per_token": flops_per_token(small_model(), SEQ),
        "peak_flops": peak,
        "peak_source": source,
        "steps": len(seconds[names[0]]),
        "first_step_seconds": {name: values[0] for name, values in seconds.items()},
        "median_step_seconds": medians,
        "tokens_per_second": {name: BATCH * SEQ / median for name, median in medians.items()},
        "last_loss": {name: values[-1] for name, values in losses.items()},
        "step_seconds": seconds,
    }


def take(name: str, process: Any, steps: int) -> dict[str, list[float]]:
    """Lets a side take steps; returns their seconds and losses."""
    with contextlib.suppress(BrokenPipeError):  # it has ended: there is no answer either
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"{name} ended: its message is above")
    return json.loads(answer)


@contextlib.contextmanager
def side_process(name: str, precision: str) -> Any:
    """Starts a side that waits for its turns, and ends it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [str(interpreter(kind(name))), __file__, "--side", name, "--precision", precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": folder},
        )
        try:
            yield process
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()


def serve(name: str, precision: str) -> None:
    """Reads numbers of steps, takes the steps, and answers each with a line of JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr
    other = second_process(name, precision) if name == TWO and "RANK" not in os.environ else None
    rank, processes = int(os.environ.get("RANK", "0")), 2 if name == TWO else 1
    if processes == 2:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    share = BATCH // processes
    compiled = name.endswith("compiled")
    step = SIDES[kind(name)](
        Work(
            small_model(),
            share,
            SEQ,
            precision=precision,
            compiled=compiled,
            processes=processes,
        )
    )
    stream = batches()
    for line in sys.stdin:
        if other is not None:
            other.stdin.write(line)
            other.stdin.flush()
        seconds, losses = [], []
        for _ in range(int(line)):
            tokens, labels = (part[rank * share :][:share] for part in next(stream))
            started = time.perf_counter()
            losses.append(float(step(tokens, labels)))
            seconds.append(time.perf_counter() - started)
        print(json.dumps({"seconds": seconds, "losses": losses}), file=answers, flush=True)
    if other is not None:
        other.stdin.close()
        other.wait()


def second_process(name: str, precision: str) -> Any:
    """Starts rank 1 of two; this process becomes rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    other = subprocess.Popen(
        [sys.executable, __file__, "--side", name, "--precision", precision],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"RANK": "1", "LOCAL_RANK": "1"},
    )
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    return other


def profile(name: str, steps: int, precision: str) -> None:
    """Prints the operators of a side by the time they take."""
    import torch

    compiled = name.endswith("compiled")
    work = Work(small_model(), BATCH, SEQ, precision=precision, compiled=compiled)
    step, stream = SIDES[kind(name)](work), batches()
    for _ in range(WARM_UP):
        step(*next(stream))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step(*next(stream))
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))


def batches() -> Any:
    """Yields tokens and labels, each (batch, seq), without end.

    Ids follow Zipf's law, and each id is often followed by the same one, so that there is
    something to learn.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    weights = 1.0 / torch.arange(1, VOCAB + 1)
    after = torch.multinomial(weights, VOCAB, replacement=True, generator=generator)
    while True:
        size = BATCH * (SEQ + 1)
        drawn = torch.multinomial(weights, size, replacement=True, generator=generator)
        text = drawn.view(BATCH, SEQ + 1)
        follows = torch.rand(BATCH, SEQ + 1, generator=generator) < 0.5
        for at in range(1, SEQ + 1):
            text[:, at] = torch.where(follows[:, at], after[text[:, at - 1]], text[:, at])
        yield text[:, :-1].contiguous(), text[:, 1:].contiguous()


def small_model() -> ModelConfig:
    """Returns the configuration of the model that all sides train."""
    from model.config import ModelConfig

    return ModelConfig(
        name="19m",
        vocab_size=VOCAB,
        hidden_size=384,
        intermediate_size=1024,
        num_layers=8,
        num_heads=6,
        num_kv_heads=2,
        max_seq_len=SEQ,
        sliding_window=WINDOW,
    )


def table(figures: dict[str, Any]) -> str:
    """Formats the figures as Markdown."""
    from model.flops import FLOP_CONVENTION

    rates, flops = figures["tokens_per_second"], figures["flops_per_token"]
    lines = [
        f"19M parameters, batch {BATCH} x {SEQ}, window {WINDOW}, {figures['precision']}; "
        f"{figures['steps']} steps per side in turns, medians. "
        f"{described(figures['machine'])}. FLOPs per token: {FLOP_CONVENTION}; "
        f"peak {figures['peak_flops'] / 1e9:,.0f} GFLOP/s ({figures['peak_source']}).",
        "",
        "| side | tokens/s | GFLOP/s | of peak | ours is | ours, compiled, is | first step, s | "
        "loss after all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rate in rates.items():
        times = (f"{rates[own] / rate:.2f}x" if own in rates else "" for own in NAMES[:2])
        lines.append(
            f"| {name} | {rate:,.0f} | {rate * flops / 1e9:.0f} | "
            f"{rate * flops / figures['peak_flops']:.0%} | {' | '.join(times)} | "
            f"{figures['first_step_seconds'][name]:.1f} | {figures['last_loss'][name]:.4f} |"
        )
    without = [f"{name} (no {package})" for name, package in figures.get("left_out", {}).items()]
    return "\n".join([*lines, "", *([f"Left out: {', '.join(without)}."] if without else []), ""])


if __name__ == "__main__":
    main()
