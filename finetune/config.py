"""Configuration of `python -m finetune sft` and `dpo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from conf.chat import ChatTemplate
from conf.errors import InputError, one_of
from conf.model_card import CardConfig
from conf.wandb_run import LoggerConfig

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""Names of the schedules, here and in transformers; all have a warm-up."""
PRECISIONS = ("auto", "bf16", "fp32")
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class SftConfig:
    """Configuration of supervised tuning.

    model: a Hugging Face folder with the model to tune.
    out: the folder to write.
    data: one source of training data, or a list of them. A source is a jsonl or parquet file, a
        folder of such files, a folder that `datasets` saved, or hf:owner/name for a data set on
        the Hugging Face Hub.
    format: a name from docs/tuning_data.md; `auto` detects the format by the columns.
    split: the split to read of a data set that has several; null for its training split.
    language: language of the messages to read from oasst2.
    chat_template: name of a file in conf/chat_template/; null for the model's own template, or
        danube if it has none.
    learning_rate: peak learning rate.
    schedule: shape of the learning rate after the warm-up: cosine, linear or constant.
    weight_decay: weight decay of the optimizer.
    clip_norm: maximum norm of the gradient; a larger one is scaled down to it.
    warmup: fraction of the steps during which the learning rate rises.
    epochs: number of passes over the data.
    max_steps: number of optimizer steps, which overrides `epochs`; null to use `epochs`.
    batch_size: sequences per optimizer step, over all processes.
    micro_batch_size: sequences per forward pass of one process; null for its whole share of the
        batch.
    max_seq_len: longest sequence in tokens; null for the model's maximum. Longer conversations
        are truncated.
    packing: fills sequences of max_seq_len with whole conversations that do not attend to each
        other; without it, a batch holds padded conversations of similar length.
    gradient_checkpointing: recomputes activations in the backward pass to save memory.
    precision: precision of the computation; weights and optimizer states are fp32. `auto` takes
        bf16 if the hardware of every process has bf16 units, else fp32. A resumed run keeps its
        precision.
    device: auto, cpu or cuda.
    seed: seed of the order of rows, of packing and of new embeddings.
    log_every: number of steps between log lines.
    validation: further data, whose loss is computed before the first step, every `validate_every`
        steps and at the end; null for none.
    validate_every: number of steps between computations of the validation loss.
    checkpoint_every: number of steps between checkpoints, from which the same command resumes;
        null for no checkpoints. They are stored in `out`.tmp until the result is complete.
    repetition_penalty: value for the generation config of the result; null keeps that of `model`.
    logger: name of a file in conf/logger/.
    card: metadata for the front matter of the model card.
    overwrite: replaces `out` if it is a model folder that Headwater made.
    check: reads and checks all data, then ends; `model` need not exist yet.
    """

    record: ClassVar[str] = "sft.json"

    model: str = MISSING
    data: Any = MISSING
    out: str = MISSING
    format: str = "auto"
    split: str | None = None
    language: str = "en"
    chat_template: ChatTemplate | None = None
    learning_rate: float = 1e-5
    schedule: str = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 8
    micro_batch_size: int | None = None
    max_seq_len: int | None = None
    packing: bool = False
    gradient_checkpointing: bool = False
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0
    log_every: int = 10
    validation: Any = None
    validate_every: int = 100
    checkpoint_every: int | None = 500
    repetition_penalty: float | None = None
    logger: LoggerConfig = field(default_factory=lambda: LoggerConfig("disabled"))
    card: CardConfig = field(default_factory=CardConfig)
    overwrite: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        self.logger.check_wandb_only()
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("precision", self.precision, PRECISIONS)
        one_of("device", self.device, DEVICES)
        for key in ("learning_rate", "epochs", "max_steps", "batch_size", "micro_batch_size"):
            _positive(key, getattr(self, key))
        for key in ("max_seq_len", "log_every", "validate_every", "checkpoint_every"):
            _positive(key, getattr(self, key))
        _positive("repetition_penalty", self.repetition_penalty)
        if not 0 <= self.warmup < 1:
            raise InputError(
                f"warmup={self.warmup}: expected a fraction of the steps, 0 or more and less than "
                "1."
            )

    @property
    def template(self) -> ChatTemplate:
        """The chat template, which `run` has chosen if none was given."""
        assert self.chat_template is not None
        return self.chat_template

    def split_batch(self, processes: int) -> tuple[int, int]:
        """Returns the sequences per forward pass of a process, and its forward passes per step.

        Raises:
            InputError: batch_size is not divisible by the number of processes, or the share of a
                process by micro_batch_size.
        """
        per_process, rest = divmod(self.batch_size, processes)
        if rest:
            raise InputError(
                f"batch_size={self.batch_size}: not divisible by the {processes} processes. "
                f"Give a multiple of {processes}."
            )
        micro = self.micro_batch_size or per_process
        if per_process % micro:
            raise InputError(
                f"micro_batch_size={micro}: does not divide the {per_process} sequences per "
                f"process (batch_size={self.batch_size}, {processes} processes). Give a divisor of "
                f"{per_process}."
            )
        return micro, per_process // micro


@dataclass
class DpoConfig(SftConfig):
    """Configuration of preference tuning, which also has all keys of `sft`.

    `data` holds pairs of a better and a worse answer, and `batch_size` counts pairs.

    beta: strength of the penalty for deviating from the base model.
    lora_rank, lora_alpha: rank and scale of the adapters on all linear layers except the head.
    """

    record: ClassVar[str] = "dpo.json"

    beta: float = 0.2
    lora_rank: int = 4
    lora_alpha: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("beta", "lora_rank", "lora_alpha"):
            _positive(key, getattr(self, key))
        if self.packing:
            raise InputError("packing=true: DPO does not pack pairs. Set packing=false.")


def _positive(key: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise InputError(f"{key}={value}: expected a number above 0.")
