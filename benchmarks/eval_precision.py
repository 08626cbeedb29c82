"""Compares the commands of `eval` on an export in bf16 and on the same weights in float32.

    python benchmarks/eval_precision.py [--isa AVX2] [--rounds 3] [--model demo_12m]

On a CPU without bf16 units both are computed in float32, so the ratio should be 1. `--isa AVX2`
makes a CPU that has the units compute like one without (oneDNN's switch, ONEDNN_MAX_CPU_ISA).
`--named` adds the export with dtype=bfloat16, which `auto` avoids there: on one short prompt,
because it is slow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import write_results
from benchmarks.machine import described, machine
from conf.terminal import silence_torchao

ROOT = Path(__file__).parents[1]
PROMPTS = ["def main(", "import os\n", "class Reader:\n", '"""Returns the'] * 2
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)
SWITCH = "ONEDNN_MAX_CPU_ISA"


def main() -> None:
    """Prepares model, corpus and tasks, times both sides in turns, writes figures and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", help=f"sets {SWITCH}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="demo_12m")
    parser.add_argument("--data", type=Path, help="a corpus; one of python_docs is made otherwise")
    parser.add_argument("--limit", type=int, default=40, help="samples of each task")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--named", action="store_true", help="time dtype=bfloat16 by name too")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/eval_precision.json"))
    options = parser.parse_args()
    if options.isa:
        os.environ[SWITCH] = options.isa  # before torch is imported
    silence_torchao()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data or tokenized(folder / "corpus")
        models = both(folder, options.model, data)
        tasks = folder / "tasks"
        run("eval", "build_tasks", f"corpus={data}", f"out={tasks}", "questions=20", "documents=4")
        commands = {
            "lm_eval": lambda side: lm_eval(models[side], tasks, folder, options.limit),
            "perplexity": lambda side: perplexity(models[side], data),
            "generate": lambda side: generate(models[side]),
            "serve": lambda side: serve(models[side], options.port),
        }
        seconds = {name: in_turns(call, options.rounds) for name, call in commands.items()}
        figures: dict[str, Any] = {
            "machine": machine(),
            SWITCH: options.isa,
            "model": options.model,
            "computed_in": computed_in(models),
            "commands": {name: compared(found) for name, found in seconds.items()},
        }
        if options.named:
            short = {dtype: generate(models["bf16"], 1, dtype) for dtype in ("auto", "bfloat16")}
            figures["one_prompt_by_dtype"] = short
    write_results(options.out, figures, table(figures))


def run(*arguments: str) -> None:
    """Runs a command of the project, and prints its output if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode not in (0, 85):  # 85: stopped where asked
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")


def tokenized(folder: Path) -> Path:
    """Returns a corpus of this Python's own sources."""
    run("data_pipeline", "tokenize", "corpus=python_docs", "tokenizer=bpe_8k", f"out={folder}")
    return folder


def both(folder: Path, model: str, data: Path) -> dict[str, Path]:
    """Returns a model after one step as its export stores it, and the same weights in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    one = [f"run_dir={folder / 'run'}", "name=run", f"data.folder={data}", f"model={model}"]
    one += ["recipe=demo", "optim=adamw_demo", "parallel.micro_batch_tokens=4096", "logger=files"]
    one += ["stop_after=1", "checkpoint.every_steps=1", "validation.tokens=1024", "report=false"]
    run("pretrain", *one)
    found = {"bf16": folder / "bf16", "fp32": folder / "fp32"}
    run("pretrain", "export", f"run={folder / 'run'}", f"out={found['bf16']}")
    (found["bf16"] / "chat_template.jinja").write_text(TEMPLATE)
    shutil.copytree(found["bf16"], found["fp32"])
    loaded = AutoModelForCausalLM.from_pretrained(found["bf16"], dtype=torch.float32)
    loaded.save_pretrained(found["fp32"])
    return found


def computed_in(models: dict[str, Path]) -> dict[str, str]:
    """Returns the type in which each side is computed."""
    from eval.load_model import load_model

    return {side: load_model(str(folder), device="cpu").dtype for side, folder in models.items()}


def in_turns(call: Callable[[str], float], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of both sides in turns, after a warm-up that is not counted.

    Each side is first in every other round.
    """
    found: dict[str, list[float]] = {"bf16": [], "fp32": []}
    for number in range(rounds + 1):
        for side in sorted(found, reverse=bool(number % 2)):
            seconds = call(side)
            if number:
                found[side].append(seconds)
    print({side: [round(s, 2) for s in times] for side, times in found.items()}, flush=True)
    return found


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Returns the median seconds, and the median ratio of neighbouring turns."""
    pairs = zip(seconds["bf16"], seconds["fp32"], strict=True)
    return seconds | {"ratio": statistics.median(ours / theirs for ours, theirs in pairs)}


def lm_eval(model: Path, tasks: Path, folder: Path, limit: int) -> float:
    """Returns the seconds of loading and scoring a model, as the command does it."""
    from eval.scores.config import LmEvalConfig
    from eval.scores.harness import lm_eval

    out = folder / "results.json"
    config = LmEvalConfig(
        models={"model": str(model)},
        task_folder=str(tasks),
        out=str(out),
        limit=limit,
        device="cpu",
        overwrite=True,
    )
    config.logger.wandb = "disabled"
    lm_eval(config)
    return float(json.loads(out.read_text())["models"]["model"]["seconds"])


def perplexity(model: Path, data: Path) -> float:
    """Returns the seconds of the command, loading included."""
    from eval.scores.perplexity import PerplexityConfig, perplexity

    started = time.perf_counter()
    perplexity(PerplexityConfig(str(model), str(data), 512, 8192, device="cpu"))
    return time.perf_counter() - started


def generate(model: Path, prompts: int = len(PROMPTS), dtype: str = "auto") -> float:
    """Returns the seconds of the command, loading included."""
    from eval.chat.generate import GenerateConfig, generate

    config = GenerateConfig(
        str(model), PROMPTS[:prompts], max_new_tokens=64, dtype=dtype, device="cpu"
    )
    started = time.perf_counter()
    generate(config)
    return time.perf_counter() - started


def serve(model: Path, port: int) -> float:
    """Returns the seconds of answers by a server that is started and stopped around them."""
    command = [sys.executable, "-m", "eval", "serve", f"model={model}", "page=false", "device=cpu"]
    process = subprocess.Popen(
        [*command, f"api_port={port}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("endpoint:"):
                break
        ask(model, port, "warm up")
        started = time.perf_counter()
        for prompt in PROMPTS:
            ask(model, port, prompt)
        return time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def ask(model: Path, port: int, prompt: str) -> None:
    """Requests an answer of 64 tokens and waits for it."""
    body = {
        "model": str(model),
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 64,
        "temperature": 0,
    }
    request = Request(
        f"http://localhost:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=600) as response:
        json.load(response)


def table(figures: dict[str, Any]) -> str:
    """Returns the figures as Markdown."""
    computed = ", ".join(f"{side} in {kind}" for side, kind in figures["computed_in"].items())
    switch = f", {SWITCH}={figures[SWITCH]}" if figures[SWITCH] else ""
    lines = [
        f"Commands of `eval` on a bf16 export of {figures['model']} and on the same weights in "
        f"float32, in turns; computed: {computed}{switch}. {described(figures['machine'])}.",
        "",
        "| command | bf16, s | fp32, s | ratio of neighbours, median |",
        "|---|---|---|---|",
    ]
    for name, found in figures["commands"].items():
        bf16, fp32 = (statistics.median(found[side]) for side in ("bf16", "fp32"))
        lines.append(f"| {name} | {bf16:.2f} | {fp32:.2f} | {found['ratio']:.2f} |")
    if "one_prompt_by_dtype" in figures:
        short = figures["one_prompt_by_dtype"]
        lines += ["", f"One prompt: auto {short['auto']:.1f} s, by name bfloat16 "]
        lines[-1] += f"{short['bfloat16']:.1f} s."
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
