"""Writes the figures of a session: Markdown, the file that calibrates the plan, and docs/gpu.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import described

BEGIN, END = "<!-- begin: figures of gpu_session.py -->", "<!-- end: figures of gpu_session.py -->"
PUBLISHED = {
    "Danube-1.8B, 2048, fp8": "36,588 per H100 (H2O-Danube, 2k to 16k)",
    "OLMo-core's 1B, 4096, bf16": "55,000 and 52% (OLMo-core, H100)",
    "OLMo-core's 1B, 4096, fp8": "65,000 and 62% (OLMo-core, H100)",
}
"""Published speeds of the same shapes, in tokens/s per GPU."""
SKIPPED = ("name", "failed", "ok", "whole_seconds")


def markdown(figures: Mapping[str, Any]) -> str:
    """Formats a session: a summary of each part, then its table."""
    parts: Mapping[str, Any] = figures["parts"]
    lines = [f"Machine: {described(dict(machine_of(figures)))}.", ""]
    lines += ["| part | items | failed | seconds |", "|---|---|---|---|"]
    for name, part in parts.items():
        failed = sum(not passed(row) for row in part["rows"])
        ended = f"; the part: {part['failed']}" if "failed" in part else ""
        lines.append(
            f"| {name} | {len(part['rows'])} | {failed}{ended} | {part.get('seconds', 0):.0f} |"
        )
    for name, part in parts.items():
        rows = [row for row in part["rows"] if row["name"] != "machine"]
        if rows:
            lines += ["", f"### {name}", "", *table(rows)]
        for row in rows:
            if "top" in row:
                lines += ["", *top_kernels(row)]
    return "\n".join([*lines, ""])


def machine_of(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the description of the machine, or {} if even that failed."""
    rows = [row for part in figures["parts"].values() for row in part["rows"]]
    found: Mapping[str, Any] = next((row for row in rows if row["name"] == "machine"), {})
    return {key: value for key, value in found.items() if key not in SKIPPED}


def passed(row: Mapping[str, Any]) -> bool:
    """Returns whether an item ran, and was right if it was compared."""
    return "failed" not in row and row.get("ok", True)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the lines of a table with one row per item and one column per kind of figure."""
    keys: dict[str, None] = {}
    for row in rows:
        keys |= dict.fromkeys(key for key, value in row.items() if is_shown(key, value))
    has_verdict = any("ok" in row for row in rows)
    has_published = any(row["name"] in PUBLISHED for row in rows)
    titles = ["item", *(["verdict"] if has_verdict else []), *map(title_of, keys)]
    titles += ["published"] if has_published else []
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for row in rows:
        cells = [row["name"]]
        if has_verdict:
            cells.append("" if "ok" not in row else "right" if row["ok"] else "**wrong**")
        cells += [cell(key, row[key]) if key in row else "" for key in keys]
        if has_published:
            cells.append(PUBLISHED.get(row["name"], ""))
        if "failed" in row:
            cells[0] += f" (failed: {row['failed']})"
        yield f"| {' | '.join(text.replace('|', '/') for text in cells)} |"


def is_shown(key: str, value: Any) -> bool:
    """Returns whether a figure has a column: nested ones are in the JSON only."""
    nested = isinstance(value, (Mapping, list))
    return key not in SKIPPED and not nested and key not in ("peak", "flops_per_token")


def title_of(key: str) -> str:
    """Returns the title of a column, with the unit of its cells."""
    if key.endswith("_bytes"):
        return f"{key.removesuffix('_bytes')}, GB".replace("_", " ")
    if key.endswith("_seconds"):
        return f"{key.removesuffix('_seconds')}, ms".replace("_", " ")
    return {"tokens_per_second": "tokens/s", "mfu": "MFU", "tflops": "TFLOP/s"}.get(
        key, key.replace("_", " ")
    )


def cell(key: str, value: Any) -> str:
    """Formats a figure in the unit of its column."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {"True": "yes", "False": "no", "None": ""}.get(str(value), str(value))
    if key.endswith("_bytes"):
        return f"{value / 1e9:.2f}"
    if key.endswith("_seconds"):
        return f"{value * 1e3:.4g}"
    if key in ("mfu", "gap_share"):
        return f"{value:.1%}"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def top_kernels(row: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a table of the kernels that take the most time."""
    yield f"Kernels of a step, {row['name']}:"
    yield from ("", "| kernel | count | share |", "|---|---|---|")
    for kernel in row["top"]:
        name = kernel["kernel"].replace("|", "/")
        yield f"| `{name}` | {kernel['count']} | {kernel['share']:.1%} |"


def calibration(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `python -m launch plan calibration=...` reads.

    A run with documents of its own is planned like one without, so only the others count.
    """
    rows = [row for part in figures["parts"].values() for row in part["rows"] if passed(row)]
    ours = [row for row in rows if "run" in row]
    return {
        "gpu": machine_of(figures).get("gpu", machine_of(figures).get("cpu")),
        "runs": [row["run"] | {"mfu": row["mfu"]} for row in ours],
        "memory": [
            {key: row[key] for key in ("checkpointing", "compiled", "activation_ratio")}
            for row in rows
            if "activation_ratio" in row
        ],
        "launches": [
            {key: row[key] for key in ("precision", "compiled", "layer_seconds")}
            for row in rows
            if "layer_seconds" in row and "precision" in row
        ],
    }


def update_page(page: Path, text: str) -> None:
    """Replaces the part of a page between the markers.

    Raises:
        ValueError: The page has no markers.
    """
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{page} has no part between {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}")
