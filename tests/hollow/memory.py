"""Compares the planned memory of a step with the peak of torch's allocator, which is exact here.

python -m tests.hollow -m tests.hollow.memory     # writes benchmarks/results/memory_plan.md
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from model.attention.backends import repeats_kv
from pretrain import initial_state
from pretrain.planning.memory import RUNTIME_BYTES, Sizes, Work, parameter_shapes, plan_memory
from tests.corpora import make_corpus
from tests.hollow.cases import MUON
from tests.hollow.harness import rehearse, small_run

TABLE = Path(__file__).parents[2] / "benchmarks/results/memory_plan.md"
SMALL_150M = {
    "model.vocab_size": 32000,
    "model.hidden_size": 768,
    "model.intermediate_size": 2048,
    "model.num_layers": 12,
    "model.num_heads": 12,
    "model.num_kv_heads": 4,
    "model.head_dim": 64,
    "model.max_seq_len": 1024,
    "model.sliding_window": None,
}
DANUBE_1_8B = SMALL_150M | {
    "model.hidden_size": 2560,
    "model.intermediate_size": 6912,
    "model.num_layers": 24,
    "model.num_heads": 32,
    "model.num_kv_heads": 8,
    "model.head_dim": 80,
    "model.max_seq_len": 2048,
}
CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "none, cudnn": {"parallel__attention": "cudnn"},
    "selective": {"parallel__activation_checkpointing": "selective"},
    "full": {"parallel__activation_checkpointing": "full"},
    "4 ranks, FSDP": {"ranks": 4},
    "4 ranks, FSDP, full": {"ranks": 4, "parallel__activation_checkpointing": "full"},
    "2 ranks, TP": {"ranks": 2, "parallel__tp": 2},
    "2 ranks, CP": {"ranks": 2, "parallel__cp": 2},
    "2 ranks, muon": {"ranks": 2, **MUON},
    "Danube-1.8B, none": {"model": "danube"},
}
MICRO_BATCH_TOKENS = 16384
LIMIT = 0.10


@dataclass(frozen=True)
class Comparison:
    """The peak of a step, in bytes of torch's allocator: planned, and measured."""

    planned: int
    measured: int

    @property
    def ratio(self) -> float:
        """Returns the measured peak as a multiple of the planned one."""
        return self.measured / self.planned


def compare(case: str, corpus: Path, run_dir: Path) -> Comparison:
    """Trains two steps of two micro-batches, and returns their peak next to the plan."""
    changes = dict(CASES[case])
    ranks = changes.pop("ranks", 1)
    shape = DANUBE_1_8B if changes.pop("model", None) else SMALL_150M
    seq_len = shape["model.max_seq_len"]
    assert seq_len is not None
    tp, cp = changes.get("parallel__tp", 1), changes.get("parallel__cp", 1)
    batch_tokens = 2 * MICRO_BATCH_TOKENS * (ranks // tp // cp)
    settings = {key.replace(".", "__"): value for key, value in shape.items()} | {
        "recipe__stages__short__seq_len": seq_len,
        "recipe__stages__long__seq_len": seq_len,
        "recipe__global_batch_tokens": batch_tokens,
        "recipe__stages__short__tokens": 4 * batch_tokens,
        "recipe__stages__long__tokens": 4 * batch_tokens,
        "parallel__micro_batch_tokens": MICRO_BATCH_TOKENS,
        "validation__every_steps": 0,
        "data__max_epochs": 1000,
        "stop_after": 2,
    }
    config = small_run(corpus, run_dir, **(settings | changes))
    # Drawing 1.8 billion weights takes a minute; no kernel reads them.
    with mock.patch.object(initial_state, "initial_value", lambda name, shape, *_: _zeros(shape)):
        run = rehearse(config, ranks)
    sizes = Sizes(1, ranks // tp // cp, cp, tp)
    work = Work(
        config.precision,
        MICRO_BATCH_TOKENS,
        seq_len,
        checkpointing=config.parallel.activation_checkpointing,
        sharded_accumulation=config.parallel.sharded_accumulation is True,
        reshard=config.parallel.reshards_after_forward(sizes.dp_shard * sizes.cp),
        repeated_kv=repeats_kv(config.parallel.attention, "cuda"),
    )
    planned = plan_memory(
        config.model, parameter_shapes(config.model), sizes, work, config.optim.name
    )
    return Comparison(planned.total - RUNTIME_BYTES, run.peak_bytes)


def _zeros(shape: torch.Size) -> torch.Tensor:
    return torch.zeros(1).expand(shape)


def main() -> None:
    """Writes the table."""
    lines = [
        "# Planned memory against torch's allocator",
        "",
        "Written by `python -m tests.hollow -m tests.hollow.memory` under torch "
        f"{torch.__version__.split('+')[0]}: two steps on a hollow GPU. The allocator is torch's. "
        f"Micro-batches of {MICRO_BATCH_TOKENS:,} tokens, bf16, not compiled; 12 layers, 768 wide, "
        "vocabulary of 32,000, sequences of 1024, and Danube-1.8B at 2048. Memory outside of the "
        "allocator is part of neither column.",
        "",
        "| case | planned GB | measured GB | measured / planned |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder) / "corpus")
        for number, case in enumerate(CASES):
            one = compare(case, corpus.folder, Path(folder) / f"run{number}")
            lines.append(
                f"| {case} | {one.planned / 1e9:.2f} | {one.measured / 1e9:.2f} | {one.ratio:.3f} |"
            )
            print(lines[-1], flush=True)
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
