"""The charts of the page that `inspect` writes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from data_pipeline.inspection.cleaning import Funnel
from data_pipeline.inspection.corpus import QUANTILES, Lengths, Totals
from data_pipeline.inspection.plan import RecipePlan
from pages.bars import Band, Bands, Bar, Bars, Histogram, Part
from pages.drawing import SOURCE_STYLES, drawing
from pages.svg import short_number

if TYPE_CHECKING:
    from pages.drawing import Drawing

REST = "rest"
"""Style shared by all sources that have no color of their own."""
MAX_BARS = 24
"""Maximum number of sources in a chart; others are combined into one bar or left out."""


def styles_of(ranked: list[str]) -> dict[str, str]:
    """Returns a style per source: a color for each of the largest, and REST for all others."""
    return {s: f"s{n + 1}" if n < SOURCE_STYLES else REST for n, s in enumerate(ranked)}


def token_charts(
    ranked: list[str],
    train: dict[str, Totals],
    held_out: dict[str, Totals],
    styles: dict[str, str],
) -> list[Drawing]:
    """Returns two charts: tokens per source and split, and bytes per token of each source."""
    shown, others = ranked[:MAX_BARS], ranked[MAX_BARS:]

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
            "training split, with the held-out split in a lighter shade",
            Bars("Tokens of each source", bars).svg,
            [],
        ),
        drawing(
            "Bytes per token",
            "higher means that the tokenizer fits the text better",
            Bars("Bytes per token of each source", density).svg,
            [],
        ),
    ]


def length_chart(source: str, lengths: Lengths, style: str) -> Drawing:
    """Draws the histogram of a source's document lengths, with quantiles marked."""
    edges, shares = lengths.histogram()
    marks = [
        (float(value), f"{q:.0%}".replace("50%", "median"))
        for q, value in zip(QUANTILES, lengths.quantiles(), strict=False)
    ]
    chart = Histogram(f"Lengths of documents of {source}", edges, shares, style, "tokens", marks)
    return drawing(source, "percent of documents", chart.svg, [])


def mixture_chart(plan: RecipePlan, ranked: list[str], styles: dict[str, str]) -> Drawing:
    """Draws how the share of each source changes over the tokens of the run."""
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

    def low_chart(width: int, height: int) -> str:
        return chart.svg(width, min(height, 240))

    return drawing("Mixture", "share of the tokens by stage", low_chart, legend, is_wide=True)


def funnel_chart(funnel: Funnel) -> Drawing:
    """Draws how many documents of a source each cleaning step kept and dropped."""
    kept = funnel.documents
    bars = [Bar("read", f"{kept:,}", (Part(kept, "s0"),))]
    for step in funnel.steps:
        kept = step.in_documents - step.dropped_documents
        bars.append(
            Bar(
                f"after {step.name.replace('_', ' ')}",
                f"{kept:,}"
                + (f"  (−{step.dropped_documents:,})" if step.dropped_documents else ""),
                (Part(kept, "s0"), Part(step.dropped_documents, "drop")),
            )
        )
    chart = Bars(f"Documents of {funnel.source} after each step", bars)
    return drawing(
        "Documents",
        "kept by each step, with dropped ones in orange",
        chart.svg,
        [],
        is_wide=True,
    )


def cluster_chart(sizes: dict[tuple[int, int], int]) -> Drawing:
    """Draws how many clusters of duplicates there are of each size, as logarithms."""
    bars = [
        Bar(
            f"{least:,}" if least == greatest else f"{least:,} to {greatest:,}",
            f"{count:,}",
            (Part(math.log10(count) + 0.3 if count else 0, "s0"),),
        )
        for (least, greatest), count in sizes.items()
    ]
    return drawing(
        "Clusters by number of documents",
        "length of the bars on a logarithmic scale",
        Bars("Clusters by number of documents", bars).svg,
        [],
    )


def similarity_chart(similarities: list[float]) -> Drawing:
    """Draws how similar sampled near duplicates are to the documents that they repeat."""
    edges = [0.0, *(tenth / 20 for tenth in range(10, 21))]
    counts = [
        sum(low <= value < high for value in similarities)
        for low, high in zip(edges, [*edges[1:-1], 1.01], strict=False)
    ]
    names = ["less than 50%", *(f"{low:.0%} to {low + 0.05:.0%}" for low in edges[1:-1])]
    first = next(place for place, count in enumerate(counts) if count)
    bars = [
        Bar(name, f"{count:,}", (Part(count, "s0"),))
        for name, count in list(zip(names, counts, strict=True))[first:]
    ]
    return drawing(
        "Similarity of near duplicates",
        f"to the document that is kept, {len(similarities)} sampled",
        Bars("Similarity of near duplicates", bars).svg,
        [],
    )


def funnel_overview(funnels: list[Funnel]) -> Drawing:
    """Draws how many bytes of each source the cleaning kept and dropped."""
    shown = sorted(funnels, key=lambda funnel: -funnel.bytes)[:MAX_BARS]
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
        "bytes, with dropped ones in orange",
        Bars("Text kept of each source", bars).svg,
        [],
        is_wide=True,
    )
