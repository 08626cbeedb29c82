"""What `python -m finetune sft` and `dpo` may be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from conf.chat import ChatTemplate
from conf.errors import InputError
from conf.wandb_run import LoggerConfig

# As the configs of this project name them, and as transformers does; all with a warm-up.
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
PRECISIONS = ("auto", "bf16", "fp32")
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class SftConfig:
    """model: a Hugging Face folder; out: the folder to make.

    data: what to learn from, or a list of it: a jsonl or parquet file, a folder of them, a folder
        that `datasets` saved, or hf:owner/name, a data set on the Hugging Face Hub.
    format: `auto` tells it by the columns; else a name of docs/tuning_data.md. split: of a data set
        that has several, null for its training split. language: of oasst2's messages.
    batch_size: sequences in an optimizer step, over all processes; micro_batch_size: those that
        one process forwards at once, null for all of its share.
    max_seq_len: in tokens, null for the model's longest; longer conversations are cut at the end.
    packing: fills sequences of max_seq_len with whole conversations that do not see each other;
        without it, a batch holds conversations of like length, padded.
    warmup: share of the steps; max_steps: ends sooner than `epochs` would.
    precision: what is computed in, with fp32 weights and optimizer: `auto` is bf16 where the
        hardware of every process multiplies it, else fp32, and after a restart what it was.
    validation: more data, for the validation loss before the first step, each `validate_every`
        steps and at the end; null for none.
    checkpoint_every: steps between checkpoints, from which the same command continues; null for
        none. They lie in `out`.tmp until the result is whole.
    repetition_penalty: that the result's generation config asks for; null for what `model` says.
    overwrite: replaces `out`, if it is a model folder that Headwater made.
    check: reads all the data, which is refused as it would be later, and ends; `model` need not be
        there yet.
    """

    record: ClassVar[str] = "sft.json"

    model: str = MISSING
    data: Any = MISSING
    out: str = MISSING
    format: str = "auto"
    split: str | None = None
    language: str = "en"
    chat_template: ChatTemplate = MISSING
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
    overwrite: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        self.logger.check_wandb_only()
        _one_of("schedule", self.schedule, tuple(SCHEDULES))
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("device", self.device, DEVICES)
        for key in ("learning_rate", "epochs", "max_steps", "batch_size", "micro_batch_size"):
            _positive(key, getattr(self, key))
        for key in ("max_seq_len", "log_every", "validate_every", "checkpoint_every"):
            _positive(key, getattr(self, key))
        _positive("repetition_penalty", self.repetition_penalty)
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup={self.warmup} is outside [0, 1): it is a share of the steps.")

    def share(self, processes: int) -> tuple[int, int]:
        """Sequences that a process forwards at once, and how many such forwards make a step.

        Raises:
            InputError: batch_size does not divide into them.
        """
        per_process, rest = divmod(self.batch_size, processes)
        if rest:
            raise InputError(
                f"batch_size={self.batch_size} does not divide among {processes} processes: "
                f"expected a multiple of {processes}."
            )
        micro = self.micro_batch_size or per_process
        if per_process % micro:
            raise InputError(
                f"micro_batch_size={micro} does not divide the {per_process} sequences of a "
                f"process (batch_size={self.batch_size} over {processes})."
            )
        return micro, per_process // micro


@dataclass
class DpoConfig(SftConfig):
    """As SftConfig, but data holds pairs of a better and a worse answer, and batch_size counts
    pairs.

    beta: how strongly the model is held to the base; lora_rank and lora_alpha: size and scale
        of the adapters on all linear layers but the head.
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
            raise InputError("packing=true: expected false, as pairs are not packed in DPO.")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{key}={value}: expected one of {', '.join(choices)}.")


def _positive(key: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise InputError(f"{key}={value}: expected a number above 0.")
