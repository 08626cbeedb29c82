"""The report's charts: from lines of metrics to drawings in two widths, for screen and phone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from eval.run_folder import Record, RunFolder
from eval.svg import Chart, Series, short_number, smoothed

SMOOTHED_SHARE = 0.02
"""Of all points, on each side of one."""
Point = tuple[float, float]
WIDE, HALF, PHONE = (960, 330), (470, 240), (400, 260)


@dataclass(frozen=True)
class Drawing:
    """A chart for a wide and for a narrow page, with its legend."""

    title: str
    unit: str
    wide: Markup
    phone: Markup
    legend: list[tuple[str, str, bool]]
    is_wide: bool


def draw(chart: Chart, *, is_wide: bool = False) -> Drawing:
    """Both drawings of a chart; all text inside is escaped."""
    legend = [(s.name, s.style, s.faint) for s in chart.series if s.points]
    return Drawing(
        chart.title,
        chart.unit,
        Markup(chart.svg(*(WIDE if is_wide else HALF))),
        Markup(chart.svg(*PHONE)),
        legend if len(legend) > 1 else [],
        is_wide,
    )


def training_charts(run: RunFolder) -> list[Drawing]:
    """Loss, learning rate, throughput, MFU and gradient norm over tokens."""
    named = tuple(
        (event["tokens"], f"{event['stage']}: sequences of {event['seq_len']}")
        if event["event"] == "stage"
        else (event["tokens"], "restart")
        for event in run.events("stage", "resume")
        if event["tokens"] or event["event"] == "resume"
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
                f"s{1 + number % 4}",
                dots=True,
            )
            for number, source in enumerate(sources)
        ),
    ]
    norms = over_tokens("grad_norm")
    top = _typical_top(norms)
    return [
        draw(Chart("Loss", "nats per token", lines, marks=named), is_wide=True),
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
                format_y=lambda value: f"{value:.2g}",
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


def sft_charts(metrics: list[Record]) -> list[Drawing]:
    """Loss and learning rate of tuning over steps."""
    train = [record for record in metrics if record["kind"] == "train"]

    def over_steps(key: str) -> list[Point]:
        return [(record["step"], record[key]) for record in train if key in record]

    return [
        draw(
            Chart(
                "Loss while tuning",
                "nats per answer token",
                [Series("loss", over_steps("loss"), "s0", dots=len(train) < 40)],
                x_label="steps",
            )
        ),
        draw(
            Chart(
                "Learning rate while tuning",
                "",
                [Series("learning rate", over_steps("learning_rate"), "s0", dots=len(train) < 40)],
                x_label="steps",
                bottom=0.0,
                format_y=lambda value: f"{value:.2g}",
            )
        ),
    ]


def smooth(points: list[Point]) -> list[Point]:
    """Without the noise of single steps."""
    return smoothed(points, max(1, round(SMOOTHED_SHARE * len(points))))


def _with_mean(points: list[Point]) -> list[Series]:
    return [
        Series("each step", points, "s0", faint=True),
        Series("smoothed", smooth(points), "s0"),
    ]


def _typical_top(points: list[Point]) -> float | None:
    """The largest value after the first tenth: the first steps would flatten the rest."""
    later = [y for _, y in points[len(points) // 10 :] if math.isfinite(y)]
    return max(later) if later else None


def _beyond(text: str, points: list[Point], top: float | None) -> str:
    """Says how far the points go where they leave the chart."""
    highest = max((y for _, y in points if math.isfinite(y)), default=0.0)
    return text if top is None or highest <= top else f"{text}; {highest:.3g} in the first steps"
