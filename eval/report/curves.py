"""Draws the report's charts from records of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from eval.report.run_folder import Record, RunFolder
from eval.scores.results import ACCURACIES
from pages.drawing import LINE_STYLES, Drawing, draw
from pages.svg import Chart, Series, short_number, smoothed

SMOOTHING_FRACTION = 0.02
"""Half width of the smoothing window, as a fraction of all points."""
MAX_LABELED_MARKS = 4
"""If there are more restarts or skipped steps than this, their marks have no label."""
MAX_DOTS = 40
"""Lines with more points than this are drawn without dots."""
LONG_RUN_STEPS = 1000
"""In runs with more steps than this, the high loss of the first steps does not set the y axis."""
MAX_HALF_WIDTH_LINES = 4
"""Charts with more lines than this take the full width, to make space for the legend."""
Point = tuple[float, float]


def training_charts(run: RunFolder, styles: dict[str, str]) -> list[Drawing]:
    """Draws loss, throughput, MFU, learning rate and gradient norm over tokens.

    styles: the CSS class of each source.
    """
    marks = event_marks(run)
    unlabeled = tuple((tokens, "") for tokens, _ in marks)  # small charts have no space for labels

    def over_tokens(key: str) -> list[Point]:
        return [(r["tokens"], r[key]) for r in run.train if r.get(key) is not None]

    def small(title: str, unit: str, lines: list[Series], **settings: Any) -> Drawing:
        return draw(Chart(title, unit, lines, marks=unlabeled, bottom=0.0, **settings))

    loss, norms, rates = over_tokens("loss"), over_tokens("grad_norm"), over_tokens("learning_rate")
    loss_top = _typical_top(loss, 0.05) if len(loss) > LONG_RUN_STEPS else None
    norm_top = _typical_top(norms, 0.1)
    lines = [
        Series("train, each step", loss, "s0", faint=True),
        Series("train, smoothed", smooth(loss), "s0"),
        *_validation_lines(run, styles),
    ]
    unit = _with_clipped_maximum("nats per token", loss, loss_top)
    return [
        draw(Chart("Loss", unit, lines, marks=marks, top=loss_top), is_wide=True),
        small(
            "Throughput",
            "tokens per second",
            _with_average(over_tokens("tokens_per_second")),
            format_y=short_number,
        ),
        small(
            "MFU",
            "fraction of peak FLOP/s",
            _with_average(over_tokens("mfu")),
            format_y=lambda value: f"{value:.0%}",
        ),
        small("Learning rate", "", [Series("learning rate", rates, "s0")], format_y=short_number),
        small(
            "Gradient norm",
            _with_clipped_maximum("before clipping", norms, norm_top),
            _with_average(norms),
            top=norm_top,
        ),
    ]


def event_marks(run: RunFolder) -> tuple[tuple[float, str], ...]:
    """Returns the positions and labels of stage starts, restarts, rewinds and skipped steps."""
    restarts = run.events("resume")
    skipped = [record["tokens"] for record in run.train if record.get("skipped")]
    restart = "restart" if len(restarts) <= MAX_LABELED_MARKS else ""
    return (
        *(
            (event["tokens"], f"{event['stage']}: sequences of {event['seq_len']}")
            for event in run.events("stage")
            if event["tokens"]
        ),
        *((event["tokens"], restart) for event in restarts),
        *((event["tokens"], "rewind") for event in run.events("rewind")),
        *((tokens, "skipped") for tokens in skipped[:MAX_LABELED_MARKS]),
        *((tokens, "") for tokens in skipped[MAX_LABELED_MARKS:]),
    )


def _validation_lines(run: RunFolder, styles: dict[str, str]) -> list[Series]:
    """Returns one line of held-out loss per source."""
    sources = run.validation[-1]["sources"] if run.validation else {}
    return [
        Series(
            f"validation, {source}",
            [
                (record["tokens"], record["sources"][source]["loss"])
                for record in run.validation
                if source in record["sources"]
            ],
            styles.get(source, "s0"),
            dots=len(run.validation) <= MAX_DOTS,
        )
        for source in sources
    ]


def score_charts(run: RunFolder) -> list[Drawing]:
    """Draws the scores of tasks during training (`evaluation.tasks`) over tokens.

    There is one chart for accuracies, with one metric per task, and one for bits per byte. If the
    tasks were scored only once, there are no charts.
    """
    scored = run.of_kind("eval")
    if len(scored) < 2:
        return []

    def lines(metrics: Sequence[str]) -> list[Series]:
        series: list[Series] = []
        for task in dict.fromkeys(task for record in scored for task in record["tasks"]):
            points = [(r["tokens"], r["tasks"][task]) for r in scored if task in r["tasks"]]
            metric = next((name for name in metrics if name in points[0][1]), None)
            if metric is not None:
                label = f"{task}, {metric}".replace("_", " ")
                values = [(tokens, scores[metric]) for tokens, scores in points]
                style = f"s{len(series) % LINE_STYLES}"
                series.append(Series(label, values, style, dots=len(values) <= MAX_DOTS))
        return series

    def charts(unit: str, metrics: Sequence[str], **settings: Any) -> list[Drawing]:
        series = lines(metrics)
        if len(series) == 1:  # a single line has no legend
            unit = f"{unit}: {series[0].name}"
        chart = Chart("Scores while training", unit, series, **settings)
        return [draw(chart, is_wide=len(series) > MAX_HALF_WIDTH_LINES)] if series else []

    return [
        *charts("correct answers", ACCURACIES, bottom=0.0, format_y=lambda value: f"{value:.0%}"),
        *charts("bits per byte", ["bits_per_byte"]),
    ]


def tuning_charts(metrics: list[Record], unit: str) -> list[Drawing]:
    """Draws loss and learning rate of tuning over steps, and also the rewards for DPO.

    Each chart has a line for training and one for validation.

    unit: unit of the loss.
    """
    kinds = {
        kind: [record for record in metrics if record["kind"] == kind]
        for kind in ("train", "validation")
    }

    def chart(title: str, unit: str, key: str, **settings: Any) -> Drawing:
        lines = [
            Series(
                kind,
                [(record["step"], record[key]) for record in records if key in record],
                style,
                dots=len(records) <= MAX_DOTS,
            )
            for (kind, records), style in zip(kinds.items(), ("s0", "s1"), strict=True)
        ]
        return draw(Chart(title, unit, lines, x_label="steps", **settings))

    charts = [
        chart("Loss", unit, "loss"),
        chart("Learning rate", "", "learning_rate", bottom=0.0, format_y=short_number),
    ]
    if any("reward_margin" in record for records in kinds.values() for record in records):
        charts += [
            chart(
                "Reward accuracy",
                "fraction of pairs whose chosen answer has the higher reward",
                "reward_accuracy",
                bottom=0.0,
                top=1.0,
                format_y=lambda value: f"{value:.0%}",
            ),
            chart(
                "Reward margin",
                "chosen minus rejected answer",
                "reward_margin",
                format_y=short_number,
            ),
        ]
    return charts


def smooth(points: list[Point]) -> list[Point]:
    """Returns a moving average that removes the noise of single steps."""
    return smoothed(points, max(1, round(SMOOTHING_FRACTION * len(points))))


def _with_average(points: list[Point]) -> list[Series]:
    return [
        Series("each step", points, "s0", faint=True),
        Series("smoothed", smooth(points), "s0"),
    ]


def _typical_top(points: list[Point], first: float) -> float | None:
    """Returns the maximum of all but the first points, whose values may be far higher.

    first: fraction of the points to leave out.
    """
    later = [y for _, y in points[int(first * len(points)) :] if math.isfinite(y)]
    return max(later) if later else None


def _with_clipped_maximum(text: str, points: list[Point], top: float | None) -> str:
    """Appends the maximum of the points to a text if it is outside the chart."""
    highest = max((y for _, y in points if math.isfinite(y)), default=0.0)
    return text if top is None or highest <= top else f"{text}; {highest:.3g} in the first steps"
