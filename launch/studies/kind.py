"""The kinds of studies, and what they exchange with the engine that runs them.

A kind is a file `launch/studies/kinds/<name>.py` with a dataclass `Study`, a subclass of
`StudyKind`, whose fields are the keys of its YAML files in `conf/study/`. It states which runs
answer the question, and what follows from their results. The engine plans, starts and reads the
runs, and writes the page.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from conf.errors import InputError
from pages.drawing import Drawing

if TYPE_CHECKING:
    from launch.studies.base_command import BaseCommand

FIT, TARGET, CHECK, TRUNK = "fit", "target", "check", "trunk"
ROLES = (FIT, TARGET, CHECK, TRUNK)
"""Roles of runs: the finding is computed from FIT, and compared with TARGET. CHECK runs are chosen
from the results of others and confirm the decision. TRUNK runs exist for their branches only."""


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        name: Name of the run, unique in the study, whose folder is `<study>/runs/<name>`. The same
            run has the same name in every call.
        overrides: Overrides of `python -m pretrain` that replace or follow those of the base
            command. A branch has the settings of its trunk, so that it states only what differs,
            such as `recipe=decay` and `recipe.stages.decay.tokens=65536`.
        values: What distinguishes the run from the others; one column of the table each.
        role: One of ROLES.
        trunk: Name of the run of the study that this run branches from, or None.
        trunk_tokens: Tokens of the trunk before the fork, rounded to whole steps by the engine,
            which also adds `branch_from` and lets the trunk keep that checkpoint.
    """

    name: str
    overrides: tuple[str, ...]
    values: dict[str, float | int | str]
    role: str = FIT
    trunk: str | None = None
    trunk_tokens: int | None = None


@dataclass(frozen=True)
class SourceLoss:
    """Held-out loss of one source.

    Attributes:
        loss: Nats per token.
        bits_per_byte: The same in bits per byte of text, which does not depend on the tokenizer;
            None if the corpus does not know its bytes.
    """

    loss: float
    bits_per_byte: float | None


@dataclass(frozen=True)
class RunResult:
    """Result of a run that has finished.

    Attributes:
        run: The run.
        parameters: Number of trainable parameters; a tied head is counted once.
        non_embedding: The same without the input embedding and without the head.
        tokens: Tokens that the model has seen, including those of the trunk before the fork.
        flops: Training FLOPs of these tokens.
        seconds: Time of the run's own steps, without those of its trunk.
        loss: Held-out loss at the end, the mean over the sources, in nats per token.
        sources: Held-out loss by source.
        tasks: Scores by task and metric, if the runs have `evaluation.tasks`.
        curve: Tokens and held-out loss of each validation, the trunk's before the fork included.
    """

    run: StudyRun
    parameters: int
    non_embedding: int
    tokens: int
    flops: float
    seconds: float
    loss: float
    sources: dict[str, SourceLoss] = field(default_factory=dict)
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Figure:
    """A drawing of `pages.drawing` with a caption of one or two sentences."""

    drawing: Drawing
    caption: str


@dataclass(frozen=True)
class Table:
    """A table: a title, names of columns, and rows of text or numbers formatted as text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """The answer of a study.

    Attributes:
        decision: What to do and how certain that is, in one sentence, the first of the page.
        facts: Further sentences.
        figures: Drawings with captions.
        tables: Tables.
        files: Content of files that are written into the study's folder, by name, such as a recipe
            that the next command takes.
        numbers: Content of `finding.json` in addition to the sentences.
    """

    decision: str
    facts: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    files: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass
class StudyKind(ABC):
    """Base class of all kinds, with the keys that every study has.

    kind: name of the kind, a file in `launch/studies/kinds`.
    base: overrides of `python -m pretrain` that all runs share; those after `--` follow them.
    seeds: seeds of the runs; with several, each run is repeated with each of them.
    budget_hours: largest total of the planned hours of all runs; null for no limit.
    budget_flops: largest total of the planned training FLOPs; null for no limit.
    """

    kind: str = MISSING
    base: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    budget_hours: float | None = None
    budget_flops: float | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"study.seeds={self.seeds}: expected different seeds, at least one.")
        for key in ("budget_hours", "budget_flops"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise InputError(f"study.{key}={value}: expected more than 0, or null.")

    @abstractmethod
    def runs(self, base: BaseCommand, results: Sequence[RunResult]) -> list[StudyRun]:
        """Returns all runs known so far.

        The method is called again whenever all of these runs have ended, until it adds none. Later
        runs may therefore depend on results; their names should then depend on their settings,
        because those change when a run is added to the study. A run that failed has no result.

        Args:
            base: The command that the runs share.
            results: Results of the runs that have finished, in the order of the runs; none as long
                as one of the first runs is missing.

        Raises:
            InputError: the keys of the study do not fit the base command.
        """

    def later(self, base: BaseCommand) -> list[StudyRun]:
        """Returns runs that will follow from results, with other settings of the same cost.

        They are part of the plan and the budget, and are never started.
        """
        return []

    @abstractmethod
    def finding(self, base: BaseCommand, results: Sequence[RunResult]) -> Finding:
        """Returns what follows from the results of all runs that have finished.

        Raises:
            InputError: the results are too few to say anything.
        """
