"""Renders the page of a study, and writes what its kind has found."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.files import write_text
from conf.text import format_duration
from launch.studies.costs import total
from launch.studies.fits.speed import ASSUMED
from launch.studies.kind import TRUNK, Finding
from launch.studies.results import used_seconds
from launch.studies.study import Study
from pages.drawing import LINE_STYLES, Drawing, draw
from pages.page import render
from pages.svg import Chart, Series, short_number

TEMPLATE = Path(__file__).parent / "templates" / "study.html"
FINDING = "finding.json"
MAX_NAMED = 16
"""Number of curves above which they have no legend."""
MAX_DOTS = 20
"""Curves with more points than this are drawn without dots."""


def render_study(study: Study) -> str:
    """Returns the page of a study, and writes its finding into the study's folder."""
    finding = find(study)
    write_text(study.folder / FINDING, finding_text(finding))
    for name, content in finding.files.items():
        write_text(study.folder / name, content)
    return render(
        TEMPLATE,
        {
            "name": study.folder.name,
            "kind": study.kind.kind,
            "decision": finding.decision,
            "facts": [*finding.facts, *failures(study)],
            "curves": [drawing for drawing in [curves(study)] if drawing.wide],
            "figures": finding.figures,
            "tables": finding.tables,
            "files": list(finding.files),
            "columns": columns(study),
            "runs": runs(study),
            "cost": cost(study),
            "commands": repeat(study),
        },
    )


def find(study: Study) -> Finding:
    """Returns the finding of a study, or the sentence that says why there is none."""
    try:
        return study.kind.finding(study.base, study.results)
    except InputError as error:
        return Finding(f"This study decides nothing: {error}")


def finding_text(finding: Finding) -> str:
    """Returns the content of `finding.json`."""
    content = {"decision": finding.decision, "facts": list(finding.facts), **finding.numbers}
    return json.dumps(content, indent=1)


def failures(study: Study) -> list[str]:
    """Returns one sentence per run that has failed."""
    found = []
    for name in study.failed:
        record = study.records.of(name)
        cause = record.cause.rstrip(".")
        found.append(
            f"Run {name} failed with exit code {record.code} ({cause}), so the finding does not "
            "contain it."
        )
    return found


def curves(study: Study) -> Drawing:
    """Returns a drawing of the held-out loss of all runs over their tokens."""
    shown = [result for result in study.results if result.run.role != TRUNK and result.curve]
    lines = [
        Series(
            result.run.name,
            result.curve,
            f"s{number % LINE_STYLES}",
            faint=number >= LINE_STYLES,
            dots=len(result.curve) <= MAX_DOTS,
        )
        for number, result in enumerate(shown)
    ]
    ends = sorted(loss for result in shown for _, loss in result.curve[len(result.curve) // 4 :])
    top = ends[-1] if ends else None  # the loss before training would flatten all differences
    made = draw(
        Chart("Held-out loss", "nats per token, mean over the sources", lines, top=top),
        is_wide=True,
    )
    if len(lines) > MAX_NAMED:
        made.legend.clear()
    return made


def columns(study: Study) -> list[str]:
    """Returns the names of the values that vary."""
    return list(dict.fromkeys(key for c in study.commands.values() for key in c.run.values))


def runs(study: Study) -> list[dict[str, Any]]:
    """Returns what the table shows of each run."""
    results = {result.run.name: result for result in study.results}
    planned, shown = study.planned(), []
    for name, command in study.commands.items():
        result, record = results.get(name), study.records.of(name)
        folder = study.base.run_dir(name)
        report = f"runs/{name}/report.html" if (folder / "report.html").is_file() else None
        state = "finished" if result is not None else "missing"
        if result is None and record.has_failed:
            state = f"code {record.code}: {record.cause}"
        shown.append(
            {
                "name": name,
                "role": command.run.role,
                "report": report,
                "values": [_text(command.run.values.get(key, "")) for key in columns(study)],
                "parameters": short_number(result.parameters) if result else "",
                "tokens": short_number(command.plan.total_tokens),
                "loss": f"{result.loss:.4f}" if result else "",
                "planned": format_duration(planned[name].seconds),
                "used": format_duration(used_seconds(folder)),
                "state": state,
                "failed": result is None,
            }
        )
    return shown


def cost(study: Study) -> list[tuple[str, str]]:
    """Returns what the study cost, planned and used."""
    speed = study.base.cluster.name
    planned = [study.costs.at(ASSUMED, command) for command in study.commands.values()]
    used = sum(used_seconds(study.base.run_dir(name)) for name in study.commands)
    whole = total(planned)
    found = [
        ("runs", f"{len(study.results)} finished, {len(study.failed)} failed"),
        ("tokens trained on", short_number(whole.tokens)),
        ("training FLOPs", f"{whole.flops:.2e}"),
        (f"time planned at the typical speed of {speed}", format_duration(whole.seconds)),
        ("time used, with validations and saves", format_duration(used)),
    ]
    if whole.price:
        price = whole.price * used / whole.seconds
        currency = study.base.cluster.currency
        found.append(("price", f"{whole.price:,.2f} {currency} planned, {price:,.2f} used"))
    for key, limit in (
        ("budget in hours", study.kind.budget_hours),
        ("budget in FLOPs", study.kind.budget_flops),
    ):
        if limit is not None:
            found.append((key, f"{limit:g}"))
    return found


def repeat(study: Study) -> str:
    """Returns the command that repeats the study in another folder."""
    file = study.folder / "study.yaml"
    words = ["python", "-m", "launch", "study", f"study={file}", f"out={study.folder}-again"]
    return shlex.join(words)


def _text(value: float | int | str) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:g}"
        if isinstance(value, float)
        else value
    )
