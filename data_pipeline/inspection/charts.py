"""The page's drawings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_pipeline.inspection.cleaning import Funnel
from data_pipeline.inspection.corpus import QUANTILES, Lengths, Totals
from data_pipeline.inspection.plan import Plan
from pages.bars import Band, Bands, Bar, Bars, Histogram, Part
from pages.drawing import SOURCE_COLOURS, drawing
from pages.svg import short_number

if TYPE_CHECKING:
    from pages.drawing import Drawing

REST = "rest"
"""Style of all sources that have no colour of their own."""
MOST_BARS = 24


def styles_of(ranked: list[str]) -> dict[str, str]:
    """A colour for each of the largest sources, one for all others."""
    return {s: f"s{n + 1}" if n < SOURCE_COLOURS else REST for n, s in enumerate(ranked)}


def token_charts(
    ranked: list[str],
    train: dict[str, Totals],
    held_out: dict[str, Totals],
    styles: dict[str, str],
) -> list[Drawing]:
    """Tokens of each source and split, and bytes per token."""
    shown, others = ranked[:MOST_BARS], ranked[MOST_BARS:]

    def tokens(sources: list[str], split: dict[str, Totals]) -> int:
        return sum(split.get(source, Totals()).tokens for source in sources)

    groups = [(source, [source], styles[source]) for source in shown]
    if others:
        groups.append((f"{len(others)} more sources", others, REST))
    total = tokens(ranked, train) or 1
    bars = [
        Bar(
            label,
            f"{short_number(tokens(members, train))} + {short_number(tokens(members, held_out))}"
            f"  ({tokens(members, train) / total:.1%})",
            (
                Part(tokens(members, train), style),
                Part(tokens(members, held_out), style, faint=True),
            ),
        )
        for label, members, style in groups
    ]
    density = [
        Bar(
            source,
            f"{train[source].bytes_per_token:.2f}",
            (Part(train[source].bytes_per_token, styles[source]),),
        )
        for source in shown
        if train[source].tokens
    ]
    return [
        drawing(
            "Tokens",
            "training, and held out in the lighter shade",
            Bars("Tokens of each source", bars).svg,
            [],
        ),
        drawing(
            "Bytes per token",
            "more means that the tokenizer fits the text better",
            Bars("Bytes per token of each source", density).svg,
            [],
        ),
    ]


def length_chart(source: str, lengths: Lengths, style: str) -> Drawing:
    """The histogram of a source, with its quantiles marked."""
    edges, shares = lengths.histogram()
    marks = [
        (float(value), f"{q:.0%}".replace("50%", "half"))
        for q, value in zip(QUANTILES, lengths.quantiles(), strict=False)
    ]
    chart = Histogram(f"Lengths of documents of {source}", edges, shares, style, "tokens", marks)
    return drawing(source, "percent of documents", chart.svg, [])


def mixture_chart(plan: Plan, ranked: list[str], styles: dict[str, str]) -> Drawing:
    """Shares of the sources over the tokens of the run."""
    spans, marks = [], []
    start = 0
    for stage in plan.stages:
        spans.append((float(start), float(start + stage.tokens)))
        marks.append((float(start), f"{stage.name}: {stage.seq_len:,}"))
        start += stage.tokens
    used = [s for s in ranked if any(stage.shares.get(s) for stage in plan.stages)]
    own = [source for source in used if styles[source] != REST]
    rest = [source for source in used if styles[source] == REST]
    bands = [Band(styles[s], [stage.shares.get(s, 0.0) for stage in plan.stages]) for s in own]
    legend = [(source, styles[source], False) for source in own]
    if rest:
        shares = [sum(stage.shares.get(s, 0.0) for s in rest) for stage in plan.stages]
        bands.append(Band(REST, shares))
        legend.append((f"{len(rest)} more sources", REST, False))
    chart = Bands("Mixture over the run", spans, bands, marks=marks)

    def low(width: int, height: int) -> str:
        return chart.svg(width, min(height, 240))

    return drawing("Mixture", "share of the tokens, stage by stage", low, legend, is_wide=True)


def funnel_chart(funnel: Funnel) -> Drawing:
    """What is left after each step, and what it dropped."""
    left = funnel.documents
    bars = [Bar("read", f"{left:,}", (Part(left, "s0"),))]
    for step in funnel.steps:
        left = step.in_documents - step.dropped_documents
        bars.append(
            Bar(
                f"after {step.name.replace('_', ' ')}",
                f"{left:,}"
                + (f"  (−{step.dropped_documents:,})" if step.dropped_documents else ""),
                (Part(left, "s0"), Part(step.dropped_documents, "drop")),
            )
        )
    chart = Bars(f"Documents of {funnel.source} after each step", bars)
    return drawing(
        "Documents",
        "left after each step; dropped in orange",
        chart.svg,
        [],
        is_wide=True,
    )


def funnel_overview(funnels: list[Funnel]) -> Drawing:
    """Bytes of each source that cleaning kept."""
    shown = sorted(funnels, key=lambda funnel: -funnel.bytes)[:MOST_BARS]
    bars = [
        Bar(
            funnel.source,
            f"{funnel.kept_bytes / max(1, funnel.bytes):.1%} kept",
            (
                Part(max(0, funnel.kept_bytes), "s0"),
                Part(min(funnel.bytes, funnel.bytes - funnel.kept_bytes), "drop"),
            ),
        )
        for funnel in shown
    ]
    return drawing(
        "Text kept of each source",
        "bytes; dropped in orange",
        Bars("Text kept of each source", bars).svg,
        [],
        is_wide=True,
    )
