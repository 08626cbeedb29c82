"""`litgpt.pretrain` with the optimizer of its documented configurations.

    python -m benchmarks.equal_time.litgpt_pretrain --stream tokens.npy --steps 100 ...

AdamW at 4e-4 down to 4e-5 along a cosine, betas 0.9 and 0.95, weight decay 0.1, clipping at 1, its
own initialization. Its batch of 512 sequences and warm-up of 2,000 steps are meant for days of
training; here both are those of the other sides. It is not compiled, because gcc 12 fails on its
compiled step.
"""

from __future__ import annotations

import time
from typing import Any

import litgpt.pretrain
import torch
from litgpt import Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.equal_time.shape import shape
from benchmarks.equal_time.work import BATCH, SEQ, WARM_UP, Answer, parsed
from model.tensors_only import load_tensors

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
    # It parses the command line of litgpt's own program, which did not start this run.
    litgpt.pretrain.save_hyperparameters = lambda *_: None
    data = Stream(torch.from_numpy(work.sequences()))
    litgpt.pretrain.setup(
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
    stored = load_tensors(work.out / "litgpt/final/lit_model.pth")["model"]
    parameters = sum(value.numel() for value in stored.values())
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


if __name__ == "__main__":
    main()
