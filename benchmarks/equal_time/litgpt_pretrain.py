"""`litgpt.pretrain` with the optimizer of its documented configurations.

    python -m benchmarks.equal_time.litgpt_pretrain --stream tokens.npy --steps 100 ...

AdamW at 4e-4 down to 4e-5 along a cosine, betas 0.9 and 0.95, weight decay 0.1, clipping at 1, its
own initialization. Its batch of 512 sequences and warm-up of 2,000 steps are meant for days of
training; here both are those of the other sides. It is not compiled, because gcc 12 fails on its
compiled step.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from litgpt import Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.pretrain import setup
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.equal_time.shape import shape
from benchmarks.equal_time.work import BATCH, SEQ, WARM_UP, Answer, Work, parsed

OPTIMIZER = {
    "class_path": "torch.optim.AdamW",
    "init_args": {"lr": 4e-4, "weight_decay": 0.1, "betas": (0.9, 0.95)},
}


class Stream(DataModule):
    """The stream's sequences as litgpt's data."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows: Any = list(rows)
        self.times: list[float] = []

    def connect(self, *_: Any, **__: Any) -> None:
        """Takes nothing: the sequences are ready."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Returns the sequences in order, and notes when each batch was asked for."""
        return DataLoader(self.rows, batch_size=BATCH, collate_fn=self._collate)

    def _collate(self, rows: list[Tensor]) -> Tensor:
        self.times.append(time.perf_counter())
        return torch.stack(rows)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Returns one batch, for the check that litgpt makes at the start."""
        return DataLoader(self.rows[:BATCH], batch_size=BATCH)


def main() -> None:
    """Trains and saves."""
    work = parsed()
    del sys.argv[1:]  # litgpt reads it too, when it saves its settings
    data = Stream(torch.from_numpy(work.sequences()))
    setup(
        model_name="",
        model_config=config(),
        out_dir=work.out / "litgpt",
        precision="bf16-mixed" if work.precision == "bf16" else "32-true",
        data=data,
        train=TrainArgs(
            save_interval=None,
            log_interval=50,
            global_batch_size=BATCH,
            micro_batch_size=BATCH,
            max_tokens=work.steps * BATCH * SEQ,
            max_norm=1.0,
            min_lr=4e-5,
            lr_warmup_steps=max(1, round(WARM_UP * work.steps)),
            tie_embeddings=False,
        ),
        eval=EvalArgs(
            interval=10**9, max_iters=1, initial_validation=False, final_validation=False
        ),
        optimizer=OPTIMIZER,
        devices=1,
        logger_name="csv",
        seed=work.seed,
    )
    seconds = [b - a for a, b in zip(data.times, data.times[1:], strict=False)][: work.steps]
    parameters = save(work)
    Answer.of(parameters, seconds[: work.steps]).write(work.out)


def config() -> Config:
    """Returns the shape as litgpt describes it."""
    own = shape()
    return Config(
        name="demo_12m",
        block_size=SEQ,
        n_layer=own.num_layers,
        n_embd=own.hidden_size,
        n_head=own.num_heads,
        n_query_groups=own.num_kv_heads,
        head_size=own.head_dim,
        vocab_size=own.vocab_size,
        padded_vocab_size=own.vocab_size,
        intermediate_size=own.intermediate_size,
        sliding_window_size=own.sliding_window,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        norm_eps=own.rms_norm_eps,
    )


NAMES = {
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}


def save(work: Work) -> int:
    """Writes model.safetensors by the names of stock transformers, and returns the parameters."""
    loaded: dict[str, Any] = torch.load(
        Path(work.out) / "litgpt/final/lit_model.pth", weights_only=False
    )
    weights: dict[str, Tensor] = loaded.get("model", loaded)
    own = shape()
    assert own.head_dim is not None
    sizes = [own.num_heads * own.head_dim, *(2 * [own.num_kv_heads * own.head_dim])]
    renamed = {
        "lm_head.weight": weights["lm_head.weight"],
        "model.embed_tokens.weight": weights["transformer.wte.weight"],
        "model.norm.weight": weights["transformer.ln_f.weight"],
    }
    for layer in range(own.num_layers):
        of, to = f"transformer.h.{layer}", f"model.layers.{layer}"
        for name, theirs in NAMES.items():
            renamed[f"{to}.{theirs}.weight"] = weights[f"{of}.{name}.weight"]
        parts = weights[f"{of}.attn.qkv.weight"].split(sizes)
        for name, part in zip("qkv", parts, strict=True):
            renamed[f"{to}.self_attn.{name}_proj.weight"] = part.contiguous()
    save_file(renamed, work.out / "model.safetensors", metadata={"format": "pt"})
    return sum(value.numel() for value in renamed.values())


if __name__ == "__main__":
    main()
