"""Compares training throughput on one GPU with other trainers, within a time limit.

Each case is a separate process that trains a few steps on random tokens, with AdamW and clipping in
every step; the speed is the median over turns of several steps between two synchronizations. The
batch is halved until it fits. FLOPs are 6 per matmul parameter and token plus 12 per layer, query
width and visible key (causal and window exact; model/flops.py). MFU is a fraction of the dense bf16
peak of the data sheet, for fp8 too. The JSON is written after each case, so that an interrupted run
keeps its results; its `runs` are what `python -m launch plan calibration=...` reads.

    python benchmarks/gpu_training.py [--limit 520] [--cases danube_1_8b]
    python benchmarks/gpu_training.py --device cpu --tiny     # tests the script without a GPU
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.machine import described, machine
from benchmarks.sides import SIDES, Work, attention_for, missing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from model.config import ModelConfig

WARM_UP, TURNS = 3, 5
PROFILED_STEPS = 2
MEASURED_SECONDS = 12
CASE_SECONDS = 150


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        batch: Sequences per step, halved until they fit.
    """

    side: str
    model: str
    seq_len: int
    batch: int
    precision: str = "bf16"
    compiled: bool = True

    @property
    def title(self) -> str:
        """Name of the case in the table."""
        compiled = "compiled" if self.compiled else "eager"
        return f"{self.side}: {self.model}, {self.seq_len}, {self.precision}, {compiled}"


CASES = (
    Case("ours", "danube_1_8b", 2048, 16),
    Case("ours", "danube_1_8b", 2048, 16, "fp8"),
    Case("transformers", "danube_1_8b", 2048, 8),
    Case("ours", "danube_1_8b", 16384, 2),
    Case("ours", "danube_1_8b", 4096, 8),
    Case("ours", "danube_1_8b", 8192, 4),
    Case("litgpt", "danube_1_8b", 2048, 8),
    Case("ours", "danube3_500m", 2048, 32),
    Case("ours", "danube3_4b", 2048, 8),
    Case("ours", "small_150m", 2048, 64),
    Case("ours", "danube3_4b", 2048, 8, "fp8"),
    Case("transformers", "small_150m", 2048, 16),
    Case("ours", "danube_1_8b", 2048, 16, "fp8_rowwise"),
    Case("ours", "danube_1_8b", 16384, 2, "fp8"),
    Case("ours", "danube_1_8b", 2048, 8, compiled=False),
    Case("transformers", "danube_1_8b", 2048, 4, compiled=False),
)
"""The cases, the most important ones first: the time limit cuts off the end."""


def main() -> None:
    """Runs the cases, and writes figures and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=520, help="seconds in all")
    parser.add_argument("--cases", default="", help="only those whose title holds this")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="two layers, 64 wide, 128 tokens")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="of the first case, to stdout")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_training.json"))
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(train(CASES[options.case], options)), flush=True)
        return
    chosen = [n for n, case in enumerate(CASES) if options.cases in case.title]
    if options.profile:
        print(train(CASES[chosen[0]], options)["profile"])
        return
    deadline = time.monotonic() + options.limit
    figures: dict[str, Any] = {"machine": machine(options.device), "cases": [], "runs": []}
    for number in chosen:
        found = run_case(number, options, deadline - time.monotonic())
        figures["cases"].append(found)
        run = found.pop("run", None)
        if run and found["side"] == "ours" and found["compiled"]:
            figures["runs"].append(run)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
        print(row(found), flush=True)
    options.out.with_suffix(".md").write_text(table(figures))
    if not any("tokens_per_second" in case for case in figures["cases"]):
        sys.exit("no case ran: see the reasons above")


def run_case(number: int, options: argparse.Namespace, left: float) -> dict[str, Any]:
    """Runs a case in a separate process; returns its figures, or the reason if it failed."""
    case = CASES[number]
    about = {"title": case.title, **asdict(case)}
    package = missing(case.side)
    if package:
        return about | {"failed": f"no package {package} here"}
    if left < CASE_SECONDS / 5:
        return about | {"failed": "no time was left"}
    command = [sys.executable, __file__, "--case", str(number), "--device", options.device]
    command += ["--tiny"] if options.tiny else []
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=min(CASE_SECONDS, left)
        )
    except subprocess.TimeoutExpired as late:
        return about | {"failed": f"not done after {late.timeout:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip() or "nothing said").splitlines()[-1]
        return about | {"failed": f"exit {done.returncode}: {last[:300]}"}
    found = json.loads(done.stdout.splitlines()[-1])
    return about | found | {"whole_seconds": time.monotonic() - began}


def train(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Measures a case with the largest batch that fits."""
    work = Work(
        model_config(case.model, options.tiny),
        4 if options.tiny else case.batch,
        128 if options.tiny else case.seq_len,
        options.device,
        case.precision,
        case.compiled and not options.tiny,
    )
    if options.profile:
        return with_fitting_batch(work, lambda work: {"profile": profile(case.side, work)})
    seconds = 0.0 if options.tiny else MEASURED_SECONDS
    return with_fitting_batch(work, lambda work: measure(case.side, work, seconds))


def with_fitting_batch(work: Work, run: Callable[[Work], dict[str, Any]]) -> dict[str, Any]:
    """Returns `run(work)`, with the batch halved until it fits into the device's memory."""
    import torch

    while True:
        try:
            return run(work)
        except torch.OutOfMemoryError:
            if work.batch == 1:
                raise
        work = replace(work, batch=work.batch // 2)
        if dist_is_initialized():
            torch.distributed.destroy_process_group()
        gc.collect()
        torch.cuda.empty_cache()


def dist_is_initialized() -> bool:
    """Returns whether an earlier attempt has left its process group."""
    import torch.distributed as dist

    return dist.is_initialized()


def started(side: str, work: Work) -> tuple[Callable[[], Tensor], Work]:
    """Returns a function that takes one step on random tokens, and the work it does.

    The returned work has the attention backend that `auto` selects.
    """
    import torch

    device = torch.device(work.device)
    if side == "ours":
        work = replace(work, attention=attention_for(work, device))
    step = SIDES[side](work)
    generator = torch.Generator(device).manual_seed(0)
    shape = (work.batch, work.seq_len + 1)
    text = torch.randint(work.model.vocab_size, shape, device=device, generator=generator)
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    return (lambda: step(tokens, labels)), work


def measure(side: str, work: Work, measured_seconds: float) -> dict[str, Any]:
    """Returns the figures of turns of steps, which take about `measured_seconds` in all."""
    import torch

    from model.flops import flops_per_token
    from pretrain.hardware import memory_peak_bytes, peak_flops, reset_memory_peak

    device = torch.device(work.device)
    wait = torch.cuda.synchronize if work.device == "cuda" else lambda: None
    step, work = started(side, work)
    began = time.perf_counter()
    first_loss = float(step())
    first = time.perf_counter() - began
    reset_memory_peak(device)  # without the timing of attention and the compilation
    for _ in range(WARM_UP - 1):
        step()
    wait()
    began = time.perf_counter()
    step()
    wait()
    steps = max(1, int(measured_seconds / TURNS / (time.perf_counter() - began)))
    seconds = []
    for _ in range(TURNS):
        began = time.perf_counter()
        for _ in range(steps):
            loss = step()
        wait()
        seconds.append((time.perf_counter() - began) / steps)
    rate = work.batch * work.seq_len / statistics.median(seconds)
    flops = flops_per_token(work.model, work.seq_len)
    peak, source = peak_flops(device, torch.bfloat16)
    run = {"model": asdict(work.model), "seq_len": work.seq_len, "precision": work.precision}
    run |= {"batch_tokens": work.batch * work.seq_len, "tokens_per_second": rate}
    return {
        "run": run,
        "batch": work.batch,
        "tokens_per_second": rate,
        "tflops": rate * flops / 1e12,
        "mfu": rate * flops / peak,
        "peak": f"{peak / 1e12:.4g} TFLOP/s: {source}",
        "flops_per_token": flops,
        "memory_bytes": memory_peak_bytes(device),
        "attention": work.attention if side == "ours" else None,
        "first_step_seconds": first,
        "step_seconds": seconds,
        "losses": [first_loss, float(loss)],
    }


def profile(side: str, work: Work) -> str:
    """Returns a table of how the time of two steps is spent."""
    key = "self_cuda_time_total" if work.device == "cuda" else "self_cpu_time_total"
    step, _ = started(side, work)
    found = profiled(step, work.device)
    return found.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=70)


def profiled(step: Callable[[], Any], device: str) -> torch.profiler.profile:
    """Returns torch's profile of two steps, after the steps to warm up."""
    import torch

    activities = torch.profiler.ProfilerActivity
    on_gpu = device == "cuda"
    for _ in range(WARM_UP):
        step()
    with torch.profiler.profile(
        activities=[activities.CPU, *([activities.CUDA] if on_gpu else [])]
    ) as found:
        for _ in range(PROFILED_STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    return found


def model_config(name: str, tiny: bool) -> ModelConfig:
    """Returns a model of conf/model, or a small one of the same kind if `tiny`."""
    from omegaconf import OmegaConf

    from model.config import ModelConfig

    path = Path(__file__).parents[1] / "conf/model" / f"{name}.yaml"
    config = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(path))
    )
    assert isinstance(config, ModelConfig)
    if not tiny:
        return config
    small: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 2,
        "vocab_size": 512,
    }
    heads: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    window = 64 if config.sliding_window else None
    return replace(config, **small, **heads, max_seq_len=128, sliding_window=window)


def row(found: dict[str, Any]) -> str:
    """Formats a line of the table."""
    if "failed" in found:
        return f"| {found['title']} | {found['failed']} | | | | | |"
    return (
        f"| {found['title']} | {found['tokens_per_second']:,.0f} | {found['tflops']:.3g} | "
        f"{found['mfu']:.1%} | {found['memory_bytes'] / 1e9:.1f} | {found['batch']} | "
        f"{found['attention'] or ''} |"
    )


def table(figures: dict[str, Any]) -> str:
    """Formats the figures as Markdown."""
    peaks = {case["peak"].split(": ")[-1] for case in figures["cases"] if "peak" in case}
    lines = [
        f"Training on one device, AdamW in every step. {described(figures['machine'])}. "
        f"Peak: {'; '.join(sorted(peaks))}.",
        "",
        "| case | tokens/s | TFLOP/s | MFU | memory, GB | batch | attention |",
        "|---|---|---|---|---|---|---|",
        *map(row, figures["cases"]),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
