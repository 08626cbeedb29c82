"""`python -m data_pipeline quality`: trains a classifier of text quality from examples."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING
from rich.console import Console

from conf.errors import InputError
from conf.output_kinds import QUALITY
from conf.outputs import Output


@dataclass
class QualityConfig:
    """Configuration of `quality`.

    good: files or folders with examples of good text. Each row of a .jsonl (.gz, .zst) or .parquet
        file is an example, and so is every other file as a whole.
    bad: files or folders with examples of poor text, as for `good`.
    out: file to write the model to.
    text_field: column of the text in files with rows.
    overwrite: replaces `out` if it is a quality model.
    held_out: fraction of the examples that are held out to measure AUC and accuracy.
    trees: number of trees in the model.
    threshold: minimum score of a text that counts as good when accuracy is measured.
    seed: seed of the split and of the training.
    """

    good: list[str] = MISSING
    bad: list[str] = MISSING
    out: str = MISSING
    text_field: str = "text"
    held_out: float = 0.2
    trees: int = 200
    threshold: float = 0.5
    seed: int = 0
    overwrite: bool = False


def quality(config: QualityConfig) -> None:
    """Trains and writes a model, and prints its AUC and accuracy on held-out examples."""
    output = Output(config.out, QUALITY, config.overwrite, [*config.good, *config.bad])
    output.check()

    from data_pipeline.cleaning.quality_model import QualityModel

    examples = [(text, label) for label in (True, False) for text in _texts(config, label)]
    random.Random(config.seed).shuffle(examples)
    held_out = max(1, round(len(examples) * config.held_out))
    kept = {label: sum(good is label for _, good in examples) for label in (True, False)}
    if min(kept.values()) < 10:
        raise InputError(
            f"good={list(config.good)} bad={list(config.bad)}: found {kept[True]} good and "
            f"{kept[False]} bad examples. Give 10 or more of each."
        )
    train, test = examples[held_out:], examples[:held_out]
    model = QualityModel.train(
        [text for text, _ in train], [good for _, good in train], config.seed, config.trees
    )
    truth = np.array([good for _, good in test])
    scores = model.scores([text for text, _ in test])
    accuracy = float(np.mean((scores >= config.threshold) == truth))
    area = auc(scores, truth)
    model.metadata |= {"good": kept[True], "bad": kept[False], "auc": area, "accuracy": accuracy}
    output.write(model.to_text())
    recall = float(np.mean(scores[truth] >= config.threshold)) if truth.any() else float("nan")
    dropped = float(np.mean(scores[~truth] < config.threshold)) if (~truth).any() else float("nan")
    Console().print(
        f"{config.out}: trained on {len(train)} examples. On {len(test)} held-out examples: AUC "
        f"{area:.3f}, accuracy {accuracy:.3f} at threshold {config.threshold:g} (keeps "
        f"{recall:.1%} of the good examples, drops {dropped:.1%} of the bad ones)",
        highlight=False,
        soft_wrap=True,
    )


def auc(scores: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    """Returns the probability that a good example outscores a bad one, counting a tie as half."""
    if good.all() or not good.any():
        return float("nan")
    bad = np.sort(scores[~good])
    below = np.searchsorted(bad, scores[good], "left") + np.searchsorted(bad, scores[good], "right")
    return float(below.mean() / 2 / len(bad))


def _texts(config: QualityConfig, good: bool) -> Iterator[str]:
    from data_pipeline.text.corpus import CorpusConfig, SourceConfig
    from data_pipeline.text.readers import read_unit
    from data_pipeline.text.units import plan_units

    name = "good" if good else "bad"
    for path in getattr(config, name):
        kind = "text"
        if path.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
            kind = "jsonl"
        elif path.endswith(".parquet"):
            kind = "parquet"
        source = SourceConfig(format=kind, paths=[path], text_field=config.text_field)
        try:
            units = plan_units(CorpusConfig(name=name, sources={name: source}))
        except InputError as error:
            raise InputError(str(error).replace(f"corpus.sources.{name}.paths", name)) from None
        for unit in units:
            yield from (r.text for r in read_unit(unit, source) if not r.flaw and r.text.strip())
