"""Draws orders of samples for property tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.stage import Stage

SEQ_LENS = (8, 16, 32)
WEIGHTS = [0.0, 0.1, 0.3, 1.0, 2.5]


@st.composite
def orders(draw: Any, ended_early: bool = False, grown: bool = False) -> SampleOrder:
    """Draws orders of one to three sources and one to three stages.

    With `ended_early`, some stages are ended early, and the next one has sequences into which the
    remainder can be cut. With `grown`, there are up to five stages, and before some of them the
    corpus grows: sources are longer or are new.
    """
    base = {f"s{i}": draw(st.integers(200, 40_000)) for i in range(draw(st.integers(1, 3)))}
    if grown:  # small enough to serve several epochs, and to grow repeatedly during one
        base = {source: 40 + tokens % 9000 for source, tokens in base.items()}
    sources, larger = dict(base), None
    stages: list[Stage] = []
    for _ in range(draw(st.integers(1, 5 if grown else 3))):
        if grown and stages and draw(st.booleans()):
            for source in [*sources, *([f"s{len(sources)}"] if draw(st.booleans()) else [])]:
                more = draw(st.sampled_from([0, 1, 31, 33, 500, 12_000]))
                sources[source] = sources.get(source, 40) + more
            larger = dict(sources)
        weights = {source: draw(st.sampled_from(WEIGHTS)) for source in sources}
        weights[next(iter(sources))] += 0.05
        samples = draw(st.integers(1, 600))
        shorter = [n for n in SEQ_LENS if not stages or n <= stages[-1].seq_len]
        seq_len = draw(st.sampled_from(shorter if ended_early else SEQ_LENS))
        planned = (
            samples + draw(st.integers(0, 900)) if ended_early and draw(st.booleans()) else None
        )
        stages.append(Stage(seq_len, samples, weights, planned, larger))
    return SampleOrder(base, stages, draw(st.integers(0, 2**40)), atom=32)


def everything(order: SampleOrder) -> Iterator[tuple[int, int, int, int]]:
    """Yields (stage, source, epoch, start) of every sample of the plan, in order."""
    for number, stage in enumerate(order.stages):
        at = order.locate(number, np.arange(stage.samples))
        yield from zip(
            [number] * stage.samples,
            at.source.tolist(),
            at.epoch.tolist(),
            at.start.tolist(),
            strict=True,
        )
