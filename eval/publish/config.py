"""Configuration of `python -m eval publish`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from conf.errors import InputError


@dataclass
class PublishConfig:
    """Configuration of `publish`.

    model: the model folder to publish, or a run, whose newest checkpoint is exported; null to
        publish only `steps`.
    repo: owner/name of the repository on the Hub, which is created if it does not exist.
    private: whether the repository must be private. false creates a public one, or publishes to one
        that is already public.
    dry_run: checks and lists what would be published, without a connection to the Hub.
    gguf: GGUF files to publish in addition to those in the folder.
    results: files of lm_eval with the scores for the card; by default, those next to the folder
        that scored this model.
    run: the run folder of `steps`.
    steps: steps of the run to publish, each as a branch `step-<number>` of the repository. They are
        exported into the run folder.
    """

    model: str | None = None
    repo: str = MISSING
    private: bool = True
    dry_run: bool = False
    gguf: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    run: str | None = None
    steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.model is None and not self.steps:
            raise InputError(
                "model=null: nothing to publish. Give a model folder, or run= and steps=."
            )
        if (self.run is None) != (not self.steps):
            raise InputError(
                f"run={self.run}, steps={self.steps}: one requires the other. Give both or none."
            )
        if self.model is None and (self.gguf or self.results):
            key = "gguf" if self.gguf else "results"
            raise InputError(
                f"{key}={getattr(self, key)}: requires model. Add model=, or remove it."
            )
        if len(set(self.steps)) < len(self.steps):
            raise InputError(f"steps={self.steps}: a step is repeated. Remove it.")
