"""Configuration of `python -m data_pipeline import`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from conf.errors import InputError, one_of

LINKS = ("symlink", "hard", "copy")


@dataclass
class ImportConfig:
    """Configuration of `import`.

    path: folder, prefix or glob of `.bin`/`.idx` pairs, which all belong to one `source`.
    source: name of the source if `path` is given.
    sources: several sources instead of `path`, as `sources.<name>=<folder, prefix or glob>`.
    out: output folder.
    overwrite: replaces `out` if it is a corpus that Headwater made.
    name: name of the corpus; null uses the name of `out`.
    tokenizer: the tokenizer.json that the shards were made with.
    eos_token: token that ends each document. If the shards lack it, boundaries come from the index.
    bos_token: token for the beginning of a document; null uses eos_token.
    pad_token: token for padding; null uses eos_token.
    held_out_fraction: fraction of each source's shards that is never trained on, at least one
        shard if above 0.
    held_out: glob on names or paths of the shards to hold out, instead of held_out_fraction.
    seed: seed for the choice of shards that held_out_fraction holds out.
    link: method of placing files in `out`: symlink, hard (link) or copy.
    workers: number of processes; 0 uses one per core.
    """

    tokenizer: str = MISSING
    out: str = MISSING
    eos_token: str = MISSING
    path: str | None = None
    source: str = "text"
    sources: dict[str, str] = field(default_factory=dict)
    name: str | None = None
    bos_token: str | None = None
    pad_token: str | None = None
    held_out_fraction: float = 0.0
    held_out: str | None = None
    seed: int = 0
    link: str = "symlink"
    workers: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("link", self.link, LINKS)
        if not 0 <= self.held_out_fraction < 1:
            raise InputError(
                f"held_out_fraction={self.held_out_fraction:g}: expected 0 or more and less than 1."
            )
        if self.held_out_fraction and self.held_out:
            raise InputError("held_out_fraction and held_out are both given. Remove one of them.")
        if bool(self.path) == bool(self.sources):
            raise InputError(
                "path and sources: expected one of the two. Give path=<folder, prefix or glob> for "
                "one source, or sources.<name>=... for each of several."
            )
