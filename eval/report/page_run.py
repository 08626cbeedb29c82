"""The parts of the report about a run: stages, data, cost, incidents, lineage."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from conf.model_card import describe_teacher
from conf.parents import describe_parents
from conf.text import format_duration
from data_pipeline.store.manifest import Manifest
from eval.report.run_folder import Record, RunFolder
from model.config import ModelConfig
from model.flops import FLOP_CONVENTION
from model.parametrization import parametrization_row
from model.rope_scaling import RopeScaling
from pages.svg import short_number

Table = list[tuple[str, str]]
MAX_LISTED_STEPS = 12
"""Maximum number of steps listed by number; the rest are only counted."""


def stages(run: RunFolder, styles: dict[str, str]) -> list[dict[str, Any]]:
    """Returns one row per stage of the recipe, with its plan and progress."""
    table = []
    recipe = run.config["recipe"]
    of_parents = list(recipe["stages"])[: recipe.get("inherited", 0)]
    for name, stage in recipe["stages"].items():
        done = [record for record in run.train if record["stage"] == name]
        weights = stage["mixture"] or {}
        total = sum(weights.values())
        rates = [record["tokens_per_second"] for record in done]
        table.append(
            {
                "name": f"{name} (parent)" if name in of_parents else name,
                "seq_len": f"{stage['seq_len']:,}",
                "rope_theta": _rope(stage, run.model),
                "tokens": f"{stage['tokens']:,}",
                "steps": f"{len(done):,}",
                "mixture": ", ".join(f"{s} {w / total:.0%}" for s, w in weights.items())
                or "by size",
                "shares": [
                    (f"{100 * weights[source] / total:.2f}", style)
                    for source, style in styles.items()
                    if source in weights
                ],
                "rate": short_number(statistics.median(rates)) if rates else "",
                "loss": f"{done[-1]['loss']:.3f}" if done else "",
            }
        )
    return table


def _rope(stage: Mapping[str, Any], model: ModelConfig) -> str:
    """Returns the RoPE base of a stage, with its scaling if it has one."""
    theta = stage.get("rope_theta") or model.rope_theta
    stated = stage.get("rope_scaling") or {}
    scaling = RopeScaling(**stated).over(model.rope_scaling)
    return f"{theta:,g}, {scaling.describe()}" if scaling.type else f"{theta:,g}"


def pace(run: RunFolder) -> list[str]:
    """Returns sentences about data waits and MFU."""
    seconds = sum(record["step_seconds"] for record in run.train)
    waited = sum(record["data_wait_seconds"] for record in run.train)
    sentences = [
        f"Steps waited for data {waited / seconds:.1%} of their time.",
        f"FLOPs per token for MFU: {FLOP_CONVENTION}.",
    ]
    above = sum(record["mfu"] > 1 for record in run.train)
    if above:
        sentences.append(
            f"MFU is above 100% in {above:,} of {len(run.train):,} steps: the peak FLOP/s were "
            "measured too low, probably because other programs used the machine."
        )
    return sentences


def data_table(run: RunFolder, manifest: Manifest) -> list[dict[str, str]]:
    """Returns one row per source: its size, dropped documents and consumed tokens."""
    consumed = run.train[-1].get("consumed_tokens", {})
    held_out = manifest.source_tokens("held_out")
    table = []
    for source, tokens in manifest.source_tokens("train").items():
        counts = manifest.sources.get(source, {})
        kept = sum(entry["documents"] for entry in manifest.shards("train", source))
        dropped = {
            reason.replace("_", " "): count
            for reason, count in counts.items()
            if reason not in ("files", "documents", "bytes") and count
        }
        seen = consumed.get(source, 0)
        size = sum(entry["bytes"] for entry in manifest.shards("train", source))
        table.append(
            {
                "source": source,
                "documents": f"{kept:,}",
                "bytes": f"{size / 1e6:,.1f} MB",
                "tokens": f"{tokens:,}",
                "held_out": f"{held_out.get(source, 0):,}",
                "seen": f"{seen:,}",
                "epochs": f"{seen / tokens:.2f}" if tokens else "",
                "dropped": ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
                or "none",
            }
        )
    return table


def cost(run: RunFolder) -> Table:
    """Returns the device hours, time, energy and storage that the run used."""
    seconds = sum(record["step_seconds"] for record in run.train)
    processes = run.env["world_size"]
    hours = seconds * processes / 3600
    # Older runs have no `device_type`; their `device` is "cpu" or the name of a GPU.
    on_cpu = run.env.get("device_type", run.env["device"]) == "cpu"
    unit = "CPU process" if on_cpu else "GPU"
    times = [record["time"] for record in run.records if "time" in record]
    saved = run.events("checkpoint")
    parents = run.env.get("parents", [])
    tokens = run.train[-1]["tokens"] - (parents[0]["tokens"] if parents else 0)
    table = [
        (f"{unit}-hours in steps", f"{hours:,.3g} ({format_duration(seconds)} x {processes})"),
        ("first to last log line", format_duration(times[-1] - times[0]) if times else "unknown"),
        ("tokens", f"{tokens:,}"),
        (f"tokens per {unit}-hour", f"{tokens / hours:,.0f}" if hours else ""),
        ("energy", energy(run)),
    ]
    if saved:
        stall_seconds = sum(event.get("held_seconds", 0.0) for event in saved)
        size = sum(event.get("bytes", 0) for event in saved)
        stalled = f"training stalled for {format_duration(stall_seconds)}"
        table.append(("checkpoints", f"{len(saved):,}, {size / 1e9:,.2f} GB; {stalled}"))
    return table


def energy(run: RunFolder) -> str:
    """Formats the measured energy, separately for GPUs and CPUs, as either may be unknown."""
    read = run.events("energy")
    if not read:
        return "unknown: no readable energy counter (NVML, RAPL)"
    kinds = (("gpu_joules", "GPUs"), ("cpu_joules", "CPU packages"))
    parts = []
    for key, name in kinds:
        joules = [event[key] for event in read if key in event]
        if joules:
            watts = sum(joules) / sum(event["seconds"] for event in read if key in event)
            parts.append(f"{sum(joules) / 3.6e6:,.3g} kWh by {name}, {watts:,.0f} W on average")
    return f"{'; '.join(parts)} (measured over {format_duration(sum(e['seconds'] for e in read))})"


def incidents(run: RunFolder) -> list[str]:
    """Returns sentences about restarts, skipped steps, rewinds and failures."""
    sentences = []
    restarts = run.events("resume")
    if restarts:
        sentences.append(f"Restarted {times(restarts)}, at {listed(restarts)}.")
    skipped = [record for record in run.train if record.get("skipped")]
    if skipped:
        sentences.append(f"Skipped {listed(skipped)}.")
    sentences += [
        f"Rewound from step {event['step']:,} to {event['to_step']:,}: {event['cause']}."
        for event in run.events("rewind")
    ]
    failed = run.events("checkpoint_failed", "copy_failed")
    if failed:
        sentences.append(f"Checkpoints or mirrors failed {times(failed)}, at {listed(failed)}.")
    slow = run.events("straggler")
    if slow:
        sentences.append(f"A process was slow {times(slow)}, at {listed(slow)}.")
    return sentences


def listed(records: list[Record]) -> str:
    """Lists steps by number: `step 5`, or `steps 5, 9 and 3 more`."""
    steps = [f"{record['step']:,}" for record in records]
    more = f" and {len(steps) - MAX_LISTED_STEPS:,} more" if len(steps) > MAX_LISTED_STEPS else ""
    return f"step{'s' * (len(steps) > 1)} {', '.join(steps[:MAX_LISTED_STEPS])}{more}"


def times(records: list[Record]) -> str:
    """Returns the number of records as an adverb, such as `once` or `5 times`."""
    return "once" if len(records) == 1 else f"{len(records):,} times"


def shards(manifest: Manifest) -> list[tuple[str, str, str]]:
    """Returns the file, tokens and sha256 of every training and held-out shard."""
    return [
        (entry["file"], f"{entry['tokens']:,}", entry["sha256"])
        for split in manifest.splits.values()
        for entries in split.values()
        for entry in entries
    ]


def lineage(
    run: RunFolder, manifest: Manifest, results: Record | None, tuned: list[Record]
) -> Table:
    """Returns the versions and fingerprints needed to reproduce the run."""
    env = run.env
    restarts = run.events("resume")
    table = [
        ("code", f"commit {env['git_commit']}{', with local changes' if env['git_dirty'] else ''}"),
        ("data", f"{manifest.name}, fingerprint {env['data_fingerprint']}"),
        ("tokenizer", f"{manifest.vocab_size:,} ids, sha256 {env['tokenizer_fingerprint']}"),
        *([("continued from", run.origin)] if run.origin else []),
        *parametrization_row(run.model).items(),
        ("order of samples", f"seed {run.config['seed']}, fingerprint {env['order_fingerprint']}"),
        ("hardware", f"{env['world_size']} x {env['device']}, threads each: {env['threads']}"),
        ("platform", f"{env['platform']}, Python {env['python']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in env["packages"].items())),
        ("checkpoints", ", ".join(run.checkpoints) or "none"),
        (
            "restarts",
            ", ".join(f"at step {event['step']:,}" for event in restarts) or "none",
        ),
    ]
    for parent in env.get("parents", []):
        table.append(("parent", f"{describe_parents([parent])}, {parent['run']}"))
    if teacher := env.get("teacher"):
        table.insert(4, ("teacher", describe_teacher(teacher)))
    for name, model in results["models"].items() if results else ():
        table.append((f"model {name}", f"fingerprint {model['fingerprint']}"))
    for stage in tuned:
        table.append((f"tuning {stage['name']}", f"inputs {stage['inputs']}"))
    editions = {stage["data"]: stage for stage in env.get("editions", [])}
    for read in editions.values() if len(editions) > 1 else ():
        read_by = ", ".join(
            stage["stage"] for stage in env["editions"] if stage["data"] == read["data"]
        )
        table.append((f"data of stage {read_by}", f"edition {read['edition']}, {read['data']}"))
    if manifest.of_run(env) is None:
        table.insert(
            2, ("data now", f"{manifest.folder} has changed since then: {manifest.fingerprint}")
        )
    return table
