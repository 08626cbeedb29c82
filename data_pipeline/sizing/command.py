"""`python -m data_pipeline plan`: what tokenizing a corpus takes, from a sample of its text.

1. `draw` reads the corpus, or a part of it, and draws the sample.
2. `trial` runs `tokenize` on the sample, and measures every task.
3. `rates` measures the comparison of documents at a small size.
4. `forecast`, `disk` and `memory` scale this to the corpus, with intervals (`intervals`).
5. `array` chooses the jobs.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from conf.output_kinds import PREPARATION_PLAN
from conf.outputs import Output
from data_pipeline.sizing import report
from data_pipeline.sizing.array import plan_array
from data_pipeline.sizing.config import PlanDataConfig
from data_pipeline.sizing.disk import disk_of
from data_pipeline.sizing.draw import Part, read_parts, shares_of, strata_of, units_to_read
from data_pipeline.sizing.forecast import Forecast, Reading
from data_pipeline.sizing.intervals import Z
from data_pipeline.sizing.memory import memory_of
from data_pipeline.sizing.rates import measure_rates
from data_pipeline.sizing.trial import run_trial
from data_pipeline.text.corpus import TokenizeConfig
from data_pipeline.text.units import Unit, plan_units
from data_pipeline.tokenizing.tokenizer import check_tokenizer, settle_tokenizer

START = (
    "import resource, hydra, data_pipeline.tokenizing.tokenize\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)
"""Code that a process of `tokenize` runs before its first task."""


def plan(config: PlanDataConfig) -> None:
    """Prints the plan, and writes it as JSON if `out` is given."""
    output = None
    if config.out is not None:
        output = Output(config.out, PREPARATION_PLAN, config.overwrite)
        output.check()
    found = make_plan(config)
    report.show(found)
    if output:
        output.write(json.dumps(found, indent=1))
        print(f"{config.out}: the plan, for data_plan of python -m launch chain")


def make_plan(config: PlanDataConfig) -> dict[str, Any]:
    """Returns the plan as the content of its JSON file."""
    config = replace(config, tokenizer=settle_tokenizer(config.tokenizer))
    check_tokenizer(config.tokenizer)
    units = plan_units(config.corpus)
    shares = shares_of(config.corpus, units, config.share)
    chosen = units_to_read(units, config.read_bytes)
    parts = list(read_parts(chosen, config.corpus, shares, config.workers))
    readings = {
        source: _reading(source, units, parts, shares[source]) for source in config.corpus.sources
    }
    warnings = list(_warnings(config, units, parts))
    tokenizing = TokenizeConfig(
        config.corpus,
        config.tokenizer,
        "",
        encoder=config.encoder,
        keep_index=config.keep_index,
    )
    start_seconds, start_bytes = measure_start()
    with tempfile.TemporaryDirectory(prefix="headwater-") as name:
        folder = Path(name)
        trial = run_trial(tokenizing, strata_of(parts, chosen, shares), folder)
        del parts
        dedup = config.corpus.cleaning.dedup
        forecast = Forecast(
            tokenizing,
            units,
            readings,
            trial,
            lambda copies: measure_rates(dedup, copies, folder / "rates"),
        )
        disk = disk_of(forecast)
    memory = memory_of(forecast, start_bytes)
    loads = [replace(load, memory_bytes=math.ceil(memory[load.name])) for load in forecast.loads()]
    once = start_seconds + forecast.once_seconds()
    array = plan_array(loads, once, config.hours, config.cpus)
    low, high = disk.corpus_spread
    return {
        "preparation_plan": report.FORMAT,
        "corpus": config.corpus.name,
        "sample": {
            "documents": sum(len(one.stratum.rows) for one in trial.drawn),
            "bytes": sum(int(one.stratum.sizes.sum()) for one in trial.drawn),
            "read": forecast.read,
            "shares": shares,
        },
        "sources": {
            source: {
                "documents": sum(
                    forecast.of_documents(one.stratum)
                    for one in trial.drawn
                    if one.stratum.source == source
                ),
                "units": sum(unit.source == source for unit in units),
                "bytes": sum(unit.bytes for unit in units if unit.source == source),
            }
            for source in readings
        },
        "documents": report.as_json(forecast.documents),
        "kept": report.as_json(forecast.kept),
        "text_bytes": report.as_json(forecast.text_bytes),
        "tokens": report.as_json(forecast.tokens),
        "drops": [
            {"source": source, "step": step, **report.as_json(drop)}
            for (source, step), drop in forecast.drops.items()
        ],
        "phases": [
            {
                "name": load.name,
                "tasks": load.tasks,
                "cpu_seconds": load.cpu_seconds,
                "largest_task_seconds": load.largest,
                "memory_bytes": load.memory_bytes,
            }
            for load in loads
        ],
        "cpu_seconds": sum(load.cpu_seconds for load in loads),
        "start_seconds": start_seconds,
        "process_seconds": forecast.once_seconds(),
        "memory_bytes": max(load.memory_bytes for load in loads),
        "disk": {
            "between_bytes": disk.between_bytes,
            "between_files": disk.between_files,
            "index_bytes": disk.index_bytes,
            "corpus": {
                "low": disk.corpus_bytes * low,
                "value": disk.corpus_bytes,
                "high": disk.corpus_bytes * high,
            },
            "corpus_files": disk.corpus_files,
        },
        "hours": config.hours,
        "array": array.to_json(),
        "warnings": warnings,
    }


def _reading(source: str, units: list[Unit], parts: list[Part], share: float) -> Reading:
    sizes = {unit.id: unit.bytes for unit in units if unit.source == source}
    own = [part for part in parts if part.unit in sizes]
    whole = sum(sizes.values())
    read = sum(sizes[part.unit] for part in own) / whole if whole else 1.0
    spread = 0.0
    if read < 1:
        # Without a second unit, nothing is known of how they differ.
        ratios = [len(part.keys) / max(1, sizes[part.unit]) for part in own]
        mean = fmean(ratios)
        differ = stdev(ratios) / mean if len(ratios) > 1 and mean else 1.0
        spread = Z * differ / math.sqrt(len(ratios)) * math.sqrt(1 - read)
    return Reading(
        share,
        read,
        sum(part.read_seconds for part in own),
        spread,
        sum(part.malformed for part in own),
    )


def _warnings(config: PlanDataConfig, units: list[Unit], parts: list[Part]) -> Iterator[str]:
    for part in parts:
        unit = units[part.unit]
        limit = config.corpus.sources[unit.source].max_malformed
        if part.malformed > limit:
            yield (
                f"{unit.files[0].path} and the files read with it have {part.malformed:,} "
                f"malformed rows, which corpus.sources.{unit.source}.max_malformed={limit} does "
                "not allow. tokenize will stop there."
            )


def measure_start() -> tuple[float, int]:
    """Returns the CPU seconds and the memory that a process takes before its first task."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", START],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, int(done.stdout) * 1024
