"""`transformers.Trainer` with its defaults, or with the rate of our AdamW.

    python -m benchmarks.equal_time.trainer [--tuned] --stream tokens.npy --steps 100 ...

Defaults of `TrainingArguments`: AdamW at 5e-5 with linear decay, no weight decay, clipping at 1, 8
sequences per step. With `--tuned`: 2e-3 with cosine decay and a warm-up, weight decay 0.1 and the
betas of language models.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.equal_time.shape import shape
from benchmarks.equal_time.work import BATCH, WARM_UP, Answer, parsed
from model.families.folder import hf_config

TUNED: dict[str, Any] = {
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
}


class Sequences(Dataset):
    """The stream's sequences, with the ids as labels, as `run_clm.py` makes them."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[row], "labels": self.rows[row]}


class StepTimes(TrainerCallback):
    """Notes the time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())


def main() -> None:
    """Trains and saves."""
    tuned = "--tuned" in sys.argv
    if tuned:
        sys.argv.remove("--tuned")
    work = parsed()
    torch.manual_seed(work.seed)
    fields = hf_config(shape(), {}, "float32")
    model = MistralForCausalLM(MistralConfig(**fields))
    times = StepTimes()
    arguments = TrainingArguments(
        output_dir=str(work.out / "trainer"),
        per_device_train_batch_size=BATCH,
        max_steps=work.steps,
        bf16=work.precision == "bf16",
        use_cpu=True,
        seed=work.seed,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
        warmup_steps=max(1, round(WARM_UP * work.steps)) if tuned else 0,
        **(TUNED if tuned else {}),
    )
    rows = torch.from_numpy(work.sequences())[:, :-1]
    Trainer(model, arguments, train_dataset=Sequences(rows), callbacks=[times]).train()
    model.save_pretrained(work.out)
    seconds = [b - a for a, b in zip(times.times, times.times[1:], strict=False)]
    answer = Answer.of(model.num_parameters(), [seconds[0], *seconds])
    answer.write(work.out)


if __name__ == "__main__":
    main()
