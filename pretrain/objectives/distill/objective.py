"""The objective `distill`: the cross-entropy, and the divergence from a teacher's answers.

The loss of each target is

    weight * T^2 * KL(P || Q) + cross_entropy_weight * cross_entropy + z_loss * log(Z)^2

where P and Q are the distributions of teacher and student over the teacher's k most probable tokens
and one outcome for all others, at temperature T (`model.soft_targets`). Positions without a target,
such as the end of a document or a masked token, do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from conf.errors import InputError
from data_pipeline.sampling.batches import Batch
from data_pipeline.sampling.recipe import StagePlan
from data_pipeline.store.manifest import Manifest
from model.config import ModelConfig
from model.logits import TopK
from model.network import Decoder
from model.soft_targets import SoftTargets
from pretrain.config import PretrainConfig
from pretrain.objectives import Loss, Setting, TaughtObjective
from pretrain.objectives.distill.answers import Teacher
from pretrain.objectives.distill.online import OnlineTeacher, check_network
from pretrain.objectives.distill.sources import NetworkSource, check_tokenizer, open_network
from pretrain.teacher_cache.teacher import CachedTeacher, open_caches, read_answers

KEY = "objective.teacher"
CACHE_KEY = "objective.teacher_cache"


@dataclass
class Distill(TaughtObjective):
    """Learns from the answers of a teacher, given by `teacher` or by `teacher_cache`.

    teacher: a Hugging Face folder, a run folder, or RUN@STEP for a step of a run, with the
        tokenizer of the corpus.
    teacher_cache: folder with the answers of a teacher, written by python -m pretrain teach, or a
        list of folders. An answer is read from the first that has it.
    top_k: number of tokens in an answer. As many as the vocabulary has give whole distributions.
    weight: factor of the divergence, which is recorded as `kl` without it.
    cross_entropy_weight: factor of the cross-entropy, which is recorded as `loss` without it.
    temperature: temperature T of both distributions.
    z_loss: coefficient of log(Z)^2, as in `objective=z_loss`; recorded as `z_loss` if above 0.
    """

    teacher: str | None = None
    teacher_cache: Any = None
    top_k: int = 64
    weight: float = 1.0
    cross_entropy_weight: float = 1.0
    temperature: float = 1.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if bool(self.teacher) == bool(self.teacher_cache):
            raise InputError(
                f"{KEY}={self.teacher}: objective=distill needs either a teacher or a cache of its "
                "answers. Give a Hugging Face folder, a run folder or RUN@STEP, or give "
                f"{CACHE_KEY}=FOLDER without {KEY}."
            )
        for key in ("cross_entropy_weight", "z_loss"):
            if getattr(self, key) < 0:
                raise InputError(f"objective.{key}={getattr(self, key)}: expected 0 or more.")
        for key in ("top_k", "weight", "temperature"):
            if not getattr(self, key) > 0:
                raise InputError(f"objective.{key}={getattr(self, key)}: expected more than 0.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The recorded sums: `kl`, `agreement` (on the most probable token) and `z_loss`."""
        return (*(("z_loss",) if self.z_loss else ()), "kl", "agreement")

    @cached_property
    def folders(self) -> list[str]:
        """The folders of the caches; none if the teacher is a network."""
        given = self.teacher_cache or []
        return [given] if isinstance(given, str) else list(given)

    @cached_property
    def source(self) -> NetworkSource:
        """The teacher on disk. Raises InputError if it is not there, or not of a known family."""
        try:
            return open_network(str(self.teacher))
        except InputError as error:
            raise InputError(f"{KEY}={self.teacher}: {error}") from None

    @property
    def network(self) -> ModelConfig | None:
        """The network of the teacher; None if its answers are cached."""
        return None if self.folders else self.source.network

    @property
    def identity(self) -> Mapping[str, Any]:
        """The path and fingerprint of the teacher, and the settings of what is learned from it."""
        return {**self._teacher.identity, "top_k": self.top_k, "temperature": self.temperature}

    def check(self, config: PretrainConfig, plan: StagePlan, manifest: Manifest) -> None:
        """Raises InputError if the teacher cannot teach this run."""
        if self.folders:
            open_caches(self.folders, self.top_k, manifest)
            return
        if config.parallel.cuda_graphs:
            raise InputError(
                "parallel.cuda_graphs=true: not possible with objective=distill, because a graph "
                "cannot contain the messages of a second network. Remove parallel.cuda_graphs."
            )
        if self.top_k > manifest.vocab_size:
            raise InputError(
                f"objective.top_k={self.top_k}: expected at most {manifest.vocab_size}, the "
                "vocabulary size of the corpus."
            )
        try:
            check_network(self.source.network, config.parallel, plan, manifest)
            check_tokenizer(self.source.tokenizer, manifest)
        except InputError as error:
            raise InputError(f"{KEY}={self.teacher}: {error}") from None

    def prepare(self, setting: Setting) -> None:
        """Loads the teacher, sharded by the layout of the run, or opens the caches."""
        config = setting.config
        if self.folders:
            caches = open_caches(self.folders, self.top_k, setting.manifest)
            self.attach = read_answers(caches, setting).attach
            self._teacher: Teacher = CachedTeacher(caches, self.top_k)
            return
        self._teacher = OnlineTeacher(
            self.source,
            TopK(self.top_k, setting.manifest.vocab_size),
            setting.layout,
            config.parallel,
            config.precision,
            setting.device,
            {layer.window for layer in config.model.layers},
        )

    def __call__(self, model: Decoder, batch: Batch) -> Loss:
        """Returns the loss of a batch as sums over its targets."""
        answers = self._teacher.answers(model, batch)
        soft_targets = SoftTargets(
            answers.ids,
            answers.log_probabilities,
            answers.log_rest,
            self.weight,
            self.cross_entropy_weight,
            self.temperature,
        )
        loss, by_sample, *terms = model(
            batch.tokens,
            batch.labels,
            batch.cu_seqlens,
            per_sample=True,
            penalty=self.penalty if self.z_loss else None,
            max_seqlen=batch.max_seqlen,
            soft_targets=soft_targets,
        )
        return Loss(loss, by_sample, tuple(terms))

    def penalty(self, log_z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the term of log(Z) of each target, and its derivative."""
        return self.z_loss * log_z.square(), 2 * self.z_loss * log_z
