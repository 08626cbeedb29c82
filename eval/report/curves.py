"""The report's charts: from lines of metrics to drawings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from eval.report.run_folder import Record, RunFolder
from eval.scores.results import ACCURACIES
from pages.drawing import Drawing, draw
from pages.svg import Chart, Series, short_number, smoothed

SMOOTHED_SHARE = 0.02
"""Of all points, on each side of one."""
NAMED_RESTARTS = 4
"""More of them are drawn without their name."""
DOTTED = 40
"""A line of more points has no dots."""
LONG = 1000
"""Steps of a run from which the first ones, at ten nats and more, no longer set the axis."""
MANY = 4
"""A legend of more lines takes the width of the page."""
STYLES = 8
"""Colours that a page has for lines."""
Point = tuple[float, float]


def training_charts(run: RunFolder, styles: dict[str, str]) -> list[Drawing]:
    """Loss, learning rate, throughput, MFU and gradient norm over tokens.

    styles: the colour of each source.
    """
    restarts = run.events("resume")
    skipped = [record["tokens"] for record in run.train if record.get("skipped")]
    restart = "restart" if len(restarts) <= NAMED_RESTARTS else ""
    named = (
        *(
            (event["tokens"], f"{event['stage']}: sequences of {event['seq_len']}")
            for event in run.events("stage")
            if event["tokens"]
        ),
        *((event["tokens"], restart) for event in restarts),
        *((event["tokens"], "rewind") for event in run.events("rewind")),
        *((tokens, "skipped") for tokens in skipped[:NAMED_RESTARTS]),
        *((tokens, "") for tokens in skipped[NAMED_RESTARTS:]),
    )
    marks = tuple((tokens, "") for tokens, _ in named)  # the small charts have no room for names

    def over_tokens(key: str) -> list[Point]:
        return [(r["tokens"], r[key]) for r in run.train if r.get(key) is not None]

    loss = over_tokens("loss")
    sources = run.validation[-1]["sources"] if run.validation else {}
    lines = [
        Series("train, each step", loss, "s0", faint=True),
        Series("train, smoothed", smooth(loss), "s0"),
        *(
            Series(
                f"validation, {source}",
                [
                    (record["tokens"], record["sources"][source]["loss"])
                    for record in run.validation
                    if source in record["sources"]
                ],
                styles.get(source, "s0"),
                dots=len(run.validation) <= DOTTED,
            )
            for source in sources
        ),
    ]
    norms = over_tokens("grad_norm")
    top = _typical_top(norms, 0.1)
    loss_top = _typical_top(loss, 0.05) if len(loss) > LONG else None
    return [
        draw(
            Chart(
                "Loss",
                _beyond("nats per token", loss, loss_top),
                lines,
                marks=named,
                top=loss_top,
            ),
            is_wide=True,
        ),
        draw(
            Chart(
                "Throughput",
                "tokens per second",
                _with_mean(over_tokens("tokens_per_second")),
                marks=marks,
                bottom=0.0,
                format_y=short_number,
            )
        ),
        draw(
            Chart(
                "MFU",
                "share of the peak",
                _with_mean(over_tokens("mfu")),
                marks=marks,
                bottom=0.0,
                format_y=lambda value: f"{value:.0%}",
            )
        ),
        draw(
            Chart(
                "Learning rate",
                "",
                [Series("learning rate", over_tokens("learning_rate"), "s0")],
                marks=marks,
                bottom=0.0,
                format_y=short_number,
            )
        ),
        draw(
            Chart(
                "Gradient norm",
                _beyond("before clipping", norms, top),
                _with_mean(norms),
                marks=marks,
                bottom=0.0,
                top=top,
            )
        ),
    ]


def score_charts(run: RunFolder) -> list[Drawing]:
    """What tasks scored while the model trained (`evaluation.tasks`), over tokens: shares in one
    drawing, of each task the metric that tells most, and bits per byte in another; none where they
    were scored but once."""
    scored = run.of_kind("eval")
    if len(scored) < 2:
        return []

    def lines(metrics: Sequence[str]) -> list[Series]:
        found: list[Series] = []
        for task in dict.fromkeys(task for record in scored for task in record["tasks"]):
            points = [(r["tokens"], r["tasks"][task]) for r in scored if task in r["tasks"]]
            metric = next((name for name in metrics if name in points[0][1]), None)
            if metric is not None:
                label = f"{task}, {metric}".replace("_", " ")
                values = [(tokens, scores[metric]) for tokens, scores in points]
                style = f"s{len(found) % STYLES}"
                found.append(Series(label, values, style, dots=len(values) <= DOTTED))
        return found

    def drawn(unit: str, metrics: Sequence[str], **settings: Any) -> list[Drawing]:
        found = lines(metrics)
        if len(found) == 1:  # a line that is alone has no legend
            unit = f"{unit}: {found[0].name}"
        chart = Chart("Scores while training", unit, found, **settings)
        return [draw(chart, is_wide=len(found) > MANY)] if found else []

    return [
        *drawn("right answers", ACCURACIES, bottom=0.0, format_y=lambda value: f"{value:.0%}"),
        *drawn("bits per byte", ["bits_per_byte"]),
    ]


def tuning_charts(metrics: list[Record], unit: str) -> list[Drawing]:
    """Loss and learning rate of tuning over steps, and where pairs were compared what became of
    the rewards; the lines of a validation stand beside those of training.

    unit: of the loss.
    """
    kinds = {
        kind: [record for record in metrics if record["kind"] == kind]
        for kind in ("train", "validation")
    }

    def drawn(title: str, unit: str, key: str, **settings: Any) -> Drawing:
        lines = [
            Series(
                kind,
                [(record["step"], record[key]) for record in records if key in record],
                style,
                dots=len(records) <= DOTTED,
            )
            for (kind, records), style in zip(kinds.items(), ("s0", "s1"), strict=True)
        ]
        return draw(Chart(title, unit, lines, x_label="steps", **settings))

    charts = [
        drawn("Loss", unit, "loss"),
        drawn("Learning rate", "", "learning_rate", bottom=0.0, format_y=short_number),
    ]
    if any("reward_margin" in record for records in kinds.values() for record in records):
        charts += [
            drawn(
                "Reward accuracy",
                "share of pairs with the better answer ahead",
                "reward_accuracy",
                bottom=0.0,
                top=1.0,
                format_y=lambda value: f"{value:.0%}",
            ),
            drawn(
                "Reward margin",
                "better less worse answer",
                "reward_margin",
                format_y=short_number,
            ),
        ]
    return charts


def smooth(points: list[Point]) -> list[Point]:
    """Without the noise of single steps."""
    return smoothed(points, max(1, round(SMOOTHED_SHARE * len(points))))


def _with_mean(points: list[Point]) -> list[Series]:
    return [
        Series("each step", points, "s0", faint=True),
        Series("smoothed", smooth(points), "s0"),
    ]


def _typical_top(points: list[Point], first: float) -> float | None:
    """The largest value after the first share of the points, which would flatten the rest."""
    later = [y for _, y in points[int(first * len(points)) :] if math.isfinite(y)]
    return max(later) if later else None


def _beyond(text: str, points: list[Point], top: float | None) -> str:
    """Says how far the points go where they leave the chart."""
    highest = max((y for _, y in points if math.isfinite(y)), default=0.0)
    return text if top is None or highest <= top else f"{text}; {highest:.3g} in the first steps"
