"""Makes the content of the `inspect` page: the texts, tables and charts for its template."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from data_pipeline.inspection import charts
from data_pipeline.inspection.cleaning import (
    Funnel,
    Rejected,
    RepeatedParagraphs,
    read_funnels,
    read_paragraphs,
    read_rejected,
)
from data_pipeline.inspection.corpus import (
    QUANTILES,
    Lengths,
    Totals,
    sample_lengths,
    totals,
)
from data_pipeline.inspection.duplicates import duplicate_facts, read_duplicates
from data_pipeline.inspection.plan import GOOD_EPOCHS, RecipePlan
from data_pipeline.inspection.samples import sample_documents, sample_sequences
from data_pipeline.inspection.subject import Subject
from data_pipeline.inspection.words import counted, listed, percent, text_size
from data_pipeline.store.manifest import Manifest
from data_pipeline.tokenizing.tokenizer import load_tokenizer
from pages.svg import short_number

Row = dict[str, Any]
OPEN_FUNNELS = 3
"""Number of sources whose cleaning section is open initially."""
SHOWN_SOURCES = 12
"""Number of sources with a histogram and samples; the tables contain all sources."""


def page_content(subject: Subject, documents: int, sequences: int, pairs: int) -> dict[str, Any]:
    """Returns the variables of the template.

    The page shows up to `documents` documents per source, `sequences` sequences per stage, and
    `pairs` pairs of near duplicates.
    """
    manifest, plan = subject.manifest, subject.plan
    manifest.check_tokenizer()
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    train, held_out = totals(manifest, "train"), totals(manifest, "held_out")
    ranked = sorted(train, key=lambda source: -train[source].tokens)
    styles = charts.styles_of(ranked)
    lengths = {source: sample_lengths(manifest, source) for source in train}
    shown = ranked[:SHOWN_SOURCES]
    funnels = read_funnels(manifest.folder)
    sampled = [
        document
        for source in shown
        for document in sample_documents(manifest, tokenizer, source, documents, subject.seed)
    ]
    return {
        "name": manifest.name,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "summary": summary(train, held_out, plan),
        "checks": checks(subject, train, held_out),
        "cards": cards(manifest, train, held_out, plan),
        "sources": source_table(ranked, train, held_out, styles),
        "source_charts": charts.token_charts(ranked, train, held_out, styles),
        "lengths": length_table(ranked, lengths, styles),
        "length_note": length_note(manifest, lengths),
        "length_charts": [charts.length_chart(s, lengths[s], styles[s]) for s in shown],
        "more_sources": len(ranked) - len(shown),
        "plan": plan and plan_facts(plan, ranked, styles),
        "funnels": [funnel_facts(f, number) for number, f in enumerate(funnels)],
        "funnel_chart": charts.funnel_overview(funnels) if len(funnels) > 1 else None,
        "paragraphs": paragraph_facts(read_paragraphs(manifest.folder)),
        "rejected": [
            {
                "source": rejected.source,
                "rows": rejected.rows,
                "summary": rejected_summary(rejected),
            }
            for rejected in read_rejected(manifest.folder)
        ],
        "duplicates": duplicate_facts(read_duplicates(manifest, pairs, subject.seed)),
        "documents": sampled,
        "sequences": sample_sequences(manifest, tokenizer, plan, sequences) if plan else [],
        "styles": styles,
        "facts": facts(manifest),
    }


def summary(train: dict[str, Totals], held_out: dict[str, Totals], plan: RecipePlan | None) -> str:
    """Returns one or two sentences that describe the corpus and the recipe."""
    tokens, documents = _sum(train, "tokens"), _sum(train, "documents")
    text = (
        f"{tokens:,} training tokens in {documents:,} documents of {counted(len(train), 'source')}"
        f", and {_sum(held_out, 'tokens'):,} tokens held out."
    )
    if plan:
        taken = sum(stage.tokens for stage in plan.stages)
        text += (
            f" The recipe {plan.name} takes {taken:,} tokens in "
            f"{counted(len(plan.stages), 'stage')}."
        )
    return text


def checks(
    subject: Subject, train: dict[str, Totals], held_out: dict[str, Totals]
) -> list[dict[str, str]]:
    """Returns problems that a run would have, each with a level (`warn` or `bad`) and a text."""
    found = []
    if subject.changed:
        found.append({"level": "bad", "text": subject.changed})
    plan = subject.plan
    if plan and plan.refused:
        found.append({"level": "bad", "text": f"A run will not start: {plan.refused}"})
    if plan:
        found += epoch_checks(plan)
    missing = [source for source in train if not held_out.get(source, Totals()).tokens]
    if missing:
        sources = "any source" if len(missing) == len(train) else listed(missing)
        text = f"There are no held-out tokens of {sources}, and therefore no validation loss."
        found.append({"level": "warn", "text": text})
    return found


def epoch_checks(plan: RecipePlan) -> list[dict[str, str]]:
    """Returns warnings about sources that are repeated too often."""
    meanings = {
        "bad": f"more than max_epochs={plan.max_epochs:g}, so a run will not start",
        "warn": f"up to {GOOD_EPOCHS:g} epochs cost little, and further epochs help less and less",
    }
    found = []
    for level, meaning in meanings.items():
        sources = [
            f"{source} {epochs:.2f} times"
            for source, epochs in sorted(plan.epochs().items(), key=lambda item: -item[1])
            if plan.level(epochs) == level
        ]
        if sources:
            found.append(
                {"level": level, "text": f"The recipe reads {listed(sources)}: {meaning}."}
            )
    return found


def cards(
    manifest: Manifest,
    train: dict[str, Totals],
    held_out: dict[str, Totals],
    plan: RecipePlan | None,
) -> list[dict[str, str]]:
    """Returns the key figures that the top of the page shows."""
    tokens, size = _sum(train, "tokens"), _sum(train, "bytes")
    largest = max(train, key=lambda source: train[source].tokens, default="")
    found = [
        card("training tokens", short_number(tokens), f"{text_size(size)} of text"),
        card("held out", short_number(_sum(held_out, "tokens")), "tokens never trained on"),
        card("documents", short_number(_sum(train, "documents")), "in the training split"),
        card(
            "sources",
            str(len(train)),
            f"{largest} has {train[largest].tokens / max(1, tokens):.0%}" if largest else "",
        ),
        card(
            "bytes per token",
            f"{size / tokens:.2f}" if tokens else "",
            f"{manifest.vocab_size:,} ids, {manifest.dtype}",
        ),
    ]
    if plan:
        epochs = plan.epochs()
        most = max(epochs, key=lambda source: epochs[source], default="")
        note = f"of {most}, the highest of all sources" if most else ""
        found.append(card("epochs", f"{epochs.get(most, 0.0):.2f}", note))
    return found


def card(label: str, value: str, note: str) -> dict[str, str]:
    """Returns one key figure with its label and an explanatory note."""
    return {"label": label, "value": value, "note": note}


def source_table(
    ranked: list[str],
    train: dict[str, Totals],
    held_out: dict[str, Totals],
    styles: dict[str, str],
) -> list[Row]:
    """Returns one table row per source, the largest source first."""
    total = _sum(train, "tokens")
    return [
        {
            "source": source,
            "style": styles[source],
            "shards": f"{train[source].shards:,}",
            "documents": f"{train[source].documents:,}",
            "text": text_size(train[source].bytes),
            "tokens": f"{train[source].tokens:,}",
            "share": f"{train[source].tokens / max(1, total):.1%}",
            "bytes_per_token": f"{train[source].bytes_per_token:.2f}",
            "held_out": f"{held_out.get(source, Totals()).tokens:,}",
        }
        for source in ranked
    ]


def length_table(
    ranked: list[str], lengths: dict[str, Lengths], styles: dict[str, str]
) -> list[Row]:
    """Returns the quantiles of document lengths, one row per source."""
    return [
        {
            "source": source,
            "style": styles[source],
            "quantiles": [f"{value:,}" for value in lengths[source].quantiles()]
            or [""] * len(QUANTILES),
            "longest": f"{lengths[source].tokens[-1]:,}" if len(lengths[source].tokens) else "",
            "mean": f"{lengths[source].tokens.mean():,.0f}" if len(lengths[source].tokens) else "",
        }
        for source in ranked
    ]


def length_note(manifest: Manifest, lengths: dict[str, Lengths]) -> str:
    """Returns a note on how the document lengths were measured."""
    read = sum(found.shards for found in lengths.values())
    total = sum(found.of_shards for found in lengths.values())
    text = "Tokens per document, including its EOS, from the indices of the shards."
    if manifest.packed:
        sizes = " and ".join(f"{size:,}" for size in manifest.packed)
        text += f" Documents are packed into sequences of {sizes}; longer ones are cut into pieces."
    if read < total:
        text += f" Measured on {read:,} of {total:,} shards, chosen by a hash of their names."
    return text


def plan_facts(plan: RecipePlan, ranked: list[str], styles: dict[str, str]) -> Row:
    """Returns the plan section: stages, their mixtures, and the tokens taken from each source."""
    taken, epochs = plan.taken(), plan.epochs()
    end = 0
    stages = []
    for stage in plan.stages:
        shares = {s: stage.shares[s] for s in ranked if stage.shares.get(s)}
        end += stage.tokens
        stages.append(
            {
                "name": stage.name,
                "seq_len": f"{stage.seq_len:,}",
                "tokens": short_number(stage.tokens),
                "samples": f"{stage.samples:,}",
                "mixture": listed(
                    [
                        f"{source} {share:.1%}"
                        + (f" (FIM {stage.fim[source]})" if source in stage.fim else "")
                        for source, share in shares.items()
                    ]
                ),
                "shares": [(f"{100 * share:.2f}", styles[s]) for s, share in shares.items()],
            }
        )
    return {
        "name": plan.name,
        "stages": stages,
        "chart": charts.mixture_chart(plan, ranked, styles),
        "max_epochs": f"{plan.max_epochs:g}",
        "good_epochs": f"{GOOD_EPOCHS:g}",
        "sources": [
            {
                "source": source,
                "style": styles[source],
                "available": f"{plan.source_tokens[source]:,}",
                "taken": f"{taken[source]:,.0f}",
                "epochs": f"{epochs.get(source, 0.0):.2f}",
                "level": plan.level(epochs.get(source, 0.0)),
            }
            for source in ranked
            if source in taken
        ],
    }


def funnel_facts(funnel: Funnel, number: int) -> Row:
    """Returns the cleaning section of a source, whose position among the sources is `number`."""
    return {
        "source": funnel.source,
        "is_open": number < OPEN_FUNNELS,
        "summary": f"{funnel.kept_documents:,} of {funnel.documents:,} documents kept "
        f"({percent(funnel.kept_documents, funnel.documents)}), "
        f"{text_size(funnel.kept_bytes)} of {text_size(funnel.bytes)}",
        "chart": charts.funnel_chart(funnel),
        "steps": [
            {
                "name": step.name.replace("_", " "),
                "in_documents": f"{step.in_documents:,}",
                "in_bytes": text_size(step.in_bytes),
                "dropped": f"{step.dropped_documents:,}",
                "dropped_bytes": text_size(step.dropped_bytes),
                "share": percent(step.dropped_documents, step.in_documents),
                "changed": f"{step.changed_documents:,}",
            }
            for step in funnel.steps
        ],
        "reasons": [
            {
                "name": ": ".join(
                    dict.fromkeys(name.replace("_", " ") for name in (step.name, reason.name))
                ),
                "summary": f"{counted(reason.documents, 'document')}, {text_size(reason.bytes)}",
                "examples": reason.examples,
            }
            for step in funnel.steps
            for reason in step.reasons
        ],
    }


def paragraph_facts(found: RepeatedParagraphs | None) -> Row | None:
    """Returns the section about repeated paragraphs, or None if there are none."""
    if found is None:
        return None
    removed = sum(found.removed.values())
    by_source = listed(f"{source} {count:,}" for source, count in found.removed.items())
    return {
        "summary": f"{counted(removed, 'paragraph')} removed, {text_size(found.bytes)}"
        + (f" ({by_source})" if found.removed else ""),
        "most_frequent": [
            {**one, "documents": f"{one['documents']:,}"} for one in found.most_frequent
        ],
    }


def rejected_summary(rejected: Rejected) -> str:
    """Returns a phrase with the number of malformed lines, and of those shown if not all are."""
    text = counted(rejected.count, "line")
    shown = len(rejected.rows)
    return text + (f", the first {shown} shown" if rejected.count > shown else "")


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Returns what identifies the corpus exactly: fingerprints, tokenizer, encoder and format."""
    ids = manifest.tokenizer
    special = ", ".join(f"{name} {ids[f'{name}_id']}" for name in ("pad", "bos", "eos"))
    encoder = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in manifest.encoder.items()
    )
    boundaries = "every document ends in EOS" if manifest.ends_in_eos else "from the index alone"
    packed = ", ".join(f"{size:,}" for size in manifest.packed)
    splits = {name: sum(map(len, sources.values())) for name, sources in manifest.splits.items()}
    return [
        ("folder", str(manifest.folder)),
        ("made by", f"python -m data_pipeline {manifest.origin}"),
        ("fingerprint", manifest.fingerprint),
        ("inputs", manifest.inputs),
        ("tokenizer", f"{manifest.vocab_size:,} ids ({special}), sha256 {ids['sha256']}"),
        ("encoder", encoder or "unknown"),
        ("ids on disk", manifest.dtype),
        ("document boundaries", boundaries),
        ("packed into", f"sequences of {packed} tokens" if packed else "no (concatenated)"),
        ("shards", ", ".join(f"{count:,} {name}" for name, count in splits.items())),
    ]


def _sum(found: dict[str, Totals], key: str) -> int:
    return sum(getattr(source, key) for source in found.values())
