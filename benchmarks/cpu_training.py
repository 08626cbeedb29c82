"""Training throughput of a 19M-parameter model on a CPU: ours beside its peers, paired.

Each side is a process of its own with the same initial weights, batches, AdamW and clipping, in
bf16 with float32 master weights; they take turns of a few steps, A B C A B C, while the others
wait. Reported are medians of the seconds of a step, and the loss of the last step: the same work
must have been done. A peer that cannot be imported is left out and named.

    python benchmarks/cpu_training.py [--sides "ours;transformers"] [--rounds 10]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.config import ModelConfig

BATCH, SEQ, VOCAB, WINDOW = 8, 512, 8192, 256
WARM_UP = 3
RATE, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0

Step = Callable[["Tensor", "Tensor"], float]
"""tokens and labels (batch, seq) -> mean loss, after the optimizer's step."""


def main() -> None:
    """Starts the sides, gives them turns, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default=";".join(SIDES), help="which, in the order of turns")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turn", type=int, default=5, help="steps of a turn")
    parser.add_argument("--limit", type=float, default=150, help="seconds: no round after them")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="of the first side, to stdout")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_training.json"))
    options = parser.parse_args()
    if options.side:
        serve(options)
        return
    if options.profile:
        profile(options.sides.split(";")[0], options.turn)
        return
    names = options.sides.split(";")
    missing = {n: m for n in names if (m := PACKAGE[n]) and not importlib.util.find_spec(m)}
    figures = compare([name for name in names if name not in missing], options)
    figures["left_out"] = missing
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(figures))
    print(table(figures))


def compare(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Turns of all sides; medians of the seconds of a step after the first ones, which compile."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(side_process(name)) for name in names}
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
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
    return {
        "machine": machine(),
        "shape": {"batch": BATCH, "seq_len": SEQ, **vars(small_model())},
        "steps": len(seconds[names[0]]),
        "first_step_seconds": {name: values[0] for name, values in seconds.items()},
        "median_step_seconds": medians,
        "tokens_per_second": {name: BATCH * SEQ / median for name, median in medians.items()},
        "times_ours": {name: medians["ours"] / m for name, m in medians.items() if "ours" in names},
        "last_loss": {name: values[-1] for name, values in losses.items()},
        "step_seconds": seconds,
    }


def take(name: str, process: Any, steps: int) -> dict[str, list[float]]:
    """Has a side take steps; their seconds and losses."""
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"{name} ended: its message is above")
    return json.loads(answer)


@contextlib.contextmanager
def side_process(name: str) -> Any:
    """A side that waits for its turn, and is ended at the end."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, __file__, "--side", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": folder},
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def serve(options: argparse.Namespace) -> None:
    """Reads numbers of steps, takes them, answers with a line of JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr
    step, stream = SIDES[options.side](), batches()
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            tokens, labels = next(stream)
            started = time.perf_counter()
            losses.append(step(tokens, labels))
            seconds.append(time.perf_counter() - started)
        print(json.dumps({"seconds": seconds, "losses": losses}), file=answers, flush=True)


def profile(name: str, steps: int) -> None:
    """Operators of a side by the time they take."""
    import torch

    step, stream = SIDES[name](), batches()
    for _ in range(WARM_UP):
        step(*next(stream))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step(*next(stream))
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))


def batches() -> Any:
    """Tokens and labels (batch, seq) without end: by Zipf's law, each pair of ids often followed
    by the same third, so that there is something to learn."""
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
    """The shape that all sides have."""
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


def ours(compiled: bool = False) -> Step:
    """A training step as `pretrain.trainer` takes it, on a layout of one process."""
    import torch

    from model.init import initial_value
    from model.network import build_meta
    from pretrain.config import OptimConfig, ParallelConfig
    from pretrain.distributed import make_layout, start
    from pretrain.optimizer import build_optimizer, scale_and_clip
    from pretrain.parallel import fill, parallelize

    config = small_model()
    layout = make_layout((1, 1, 1, 1), start("cpu").device)
    model = build_meta(config, "blocks")
    parallelize(model, layout, ParallelConfig(compile=compiled), "bf16")
    fill(
        model,
        torch.device("cpu"),
        lambda name, shape: initial_value(name, shape, config, 0),
    )
    optimizer = build_optimizer(
        model,
        OptimConfig(
            learning_rate=RATE, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=DECAY
        ),
    )
    starts = torch.arange(0, (BATCH + 1) * SEQ, SEQ, dtype=torch.int32)
    starts = torch.cat((starts, starts[-1:].expand(BATCH * SEQ - BATCH)))  # as the loader pads

    def step(tokens: Tensor, labels: Tensor) -> float:
        loss, _ = model(tokens, labels, starts, None, per_sample=True)
        (loss / (BATCH * SEQ)).backward()
        scale_and_clip(model.parameters(), torch.tensor(1.0), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()) / (BATCH * SEQ)

    return step


def transformers(compiled: bool = False) -> Step:
    """Mistral of `transformers` with its own loss."""
    from transformers import MistralConfig, MistralForCausalLM

    from model.hf import hf_config, hf_name

    fields = hf_config(small_model(), {}, "float32")
    model = MistralForCausalLM(MistralConfig(**fields, attn_implementation="sdpa"))
    model.load_state_dict({hf_name(name): value for name, value in initial_values().items()})
    return plain_loop(
        model,
        lambda called, tokens, labels: (
            called(input_ids=tokens, labels=labels, shift_labels=labels, use_cache=False).loss
        ),
        compiled,
    )


def litgpt() -> Step:
    """The model of `litgpt`, eager."""
    import torch
    from litgpt import GPT, Config

    own = small_model()
    model = GPT(
        Config(
            block_size=SEQ,
            n_layer=own.num_layers,
            n_embd=own.hidden_size,
            n_head=own.num_heads,
            n_query_groups=own.num_kv_heads,
            head_size=own.head_dim,
            vocab_size=VOCAB,
            padded_vocab_size=VOCAB,
            intermediate_size=own.intermediate_size,
            sliding_window_size=WINDOW,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            norm_eps=own.rms_norm_eps,
        )
    )
    values = initial_values()
    renamed = {
        "lm_head.weight": values["lm_head.weight"],
        "transformer.wte.weight": values["embed_tokens.weight"],
        "transformer.ln_f.weight": values["norm.weight"],
    }
    names = {
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
        "attn.proj": "self_attn.o_proj",
        "mlp.fc_1": "mlp.gate_proj",
        "mlp.fc_2": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
    }
    for layer in range(own.num_layers):
        to, by = f"transformer.h.{layer}", f"layers.{layer}"
        for name, our_name in names.items():
            renamed[f"{to}.{name}.weight"] = values[f"{by}.{our_name}.weight"]
        parts = [values[f"{by}.self_attn.{name}_proj.weight"] for name in "qkv"]
        renamed[f"{to}.attn.qkv.weight"] = torch.cat(parts)
    model.load_state_dict(renamed)
    return plain_loop(model, logits_loss, False)


def nanogpt(compiled: bool = False) -> Step:
    """A plain model in one class and a plain loop, as nanoGPT's, of the same shape."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    own = small_model()
    assert own.head_dim
    q_size, kv_size, head_dim = own.query_size, own.kv_size, own.head_dim

    class PlainBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1 = nn.RMSNorm(own.hidden_size, eps=own.rms_norm_eps)
            self.norm_2 = nn.RMSNorm(own.hidden_size, eps=own.rms_norm_eps)
            self.qkv = nn.Linear(own.hidden_size, q_size + 2 * kv_size, bias=False)
            self.o = nn.Linear(q_size, own.hidden_size, bias=False)
            self.gate_up = nn.Linear(own.hidden_size, 2 * own.intermediate_size, bias=False)
            self.down = nn.Linear(own.intermediate_size, own.hidden_size, bias=False)

        def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm_1(x)).split((q_size, kv_size, kv_size), -1)
            q, k, v = (part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in (q, k, v))
            q, k = (
                part * cos + torch.cat((-part.chunk(2, -1)[1], part.chunk(2, -1)[0]), -1) * sin
                for part in (q, k)
            )
            out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
            x = x + self.o(out.transpose(1, 2).flatten(2))
            gate, up = self.gate_up(self.norm_2(x)).chunk(2, -1)
            return x + self.down(F.silu(gate) * up)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCAB, own.hidden_size)
            self.blocks = nn.ModuleList(PlainBlock() for _ in range(own.num_layers))
            self.norm = nn.RMSNorm(own.hidden_size, eps=own.rms_norm_eps)
            self.head = nn.Linear(own.hidden_size, VOCAB, bias=False)
            from model.rope import rope_table

            at = torch.arange(SEQ)
            cos, sin = rope_table(at, head_dim, own.rope_theta, torch.bfloat16)
            self.register_buffer("cos", cos)
            self.register_buffer("sin", sin)
            distance = at[:, None] - at[None]
            self.register_buffer("mask", (distance >= 0) & (distance < WINDOW))

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x, self.cos, self.sin, self.mask)
            return self.head(self.norm(x))

    values = initial_values()
    renamed = {
        "embed.weight": values["embed_tokens.weight"],
        "norm.weight": values["norm.weight"],
        "head.weight": values["lm_head.weight"],
    }
    for layer in range(own.num_layers):
        to, by = f"blocks.{layer}", f"layers.{layer}"
        attention = [values[f"{by}.self_attn.{name}_proj.weight"] for name in "qkvo"]
        gate, up, down = (values[f"{by}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        renamed[f"{to}.norm_1.weight"] = values[f"{by}.input_layernorm.weight"]
        renamed[f"{to}.norm_2.weight"] = values[f"{by}.post_attention_layernorm.weight"]
        renamed[f"{to}.qkv.weight"], renamed[f"{to}.o.weight"] = (
            torch.cat(attention[:3]),
            attention[3],
        )
        renamed[f"{to}.gate_up.weight"], renamed[f"{to}.down.weight"] = torch.cat((gate, up)), down
    model = Plain()
    model.load_state_dict(renamed, strict=False)
    return plain_loop(model, logits_loss, compiled)


def initial_values() -> dict[str, Tensor]:
    """Weights by our names, the same on all sides."""
    from model.init import initial_value
    from model.network import build_meta

    shapes = {name: value.shape for name, value in build_meta(small_model()).named_parameters()}
    return {name: initial_value(name, shape, small_model(), 0) for name, shape in shapes.items()}


def logits_loss(called: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of whole logits in float32."""
    import torch.nn.functional as F

    return F.cross_entropy(called(tokens).float().flatten(0, 1), labels.flatten())


def plain_loop(
    model: nn.Module, loss_of: Callable[[Any, Tensor, Tensor], Tensor], compiled: bool
) -> Step:
    """Autocast to bf16, clipping, fused AdamW; the whole model compiled where asked."""
    import torch

    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": w} for w in (DECAY, 0.0)]
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or any(part in name for part in ("embed", "wte"))
        groups[spared]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS, fused=True)
    model.train()
    called = torch.compile(model) if compiled else model

    def step(tokens: Tensor, labels: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(called, tokens, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    found = {"cpu": model, "threads": torch.get_num_threads(), "amx": False}
    with contextlib.suppress(AttributeError):
        found["amx"] = torch.cpu._is_amx_tile_supported()
        found["avx512_bf16"] = torch.cpu._is_avx512_bf16_supported()
    packages = ("torch", "transformers", "litgpt")
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found | {"python": platform.python_version()}


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    about = ", ".join(f"{key} {value}" for key, value in figures["machine"].items())
    steps = figures["steps"]
    lines = [
        f"19M parameters, batch {BATCH} x {SEQ}, window {WINDOW}, bf16; {steps} steps a side in "
        f"turns, medians of a step. {about}.",
        "",
        "| side | tokens/s | ours is | first step, s | loss after all steps |",
        "|---|---|---|---|---|",
    ]
    for name, rate in figures["tokens_per_second"].items():
        ours_is = figures["tokens_per_second"].get("ours", rate) / rate
        lines.append(
            f"| {name} | {rate:,.0f} | {ours_is:.2f}x | {figures['first_step_seconds'][name]:.1f} "
            f"| {figures['last_loss'][name]:.4f} |"
        )
    left_out = [f"{name} (no {package})" for name, package in figures.get("left_out", {}).items()]
    return "\n".join([*lines, "", *([f"Left out: {', '.join(left_out)}."] if left_out else []), ""])


SIDES: dict[str, Callable[[], Step]] = {
    "ours": ours,
    "ours, compiled": lambda: ours(compiled=True),
    "transformers": transformers,
    "transformers, compiled": lambda: transformers(compiled=True),
    "nanogpt": nanogpt,
    "nanogpt, compiled": lambda: nanogpt(compiled=True),
    "litgpt": litgpt,
}
PACKAGE = {name: name.split(",")[0] for name in SIDES} | dict.fromkeys(
    ("ours", "ours, compiled", "nanogpt", "nanogpt, compiled"), ""
)

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
