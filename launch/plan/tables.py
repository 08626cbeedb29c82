"""The tables of a plan, for the terminal and the page, with the confidence of each column."""

from __future__ import annotations

from dataclasses import dataclass

from conf.text import GIB, format_bytes, format_duration
from launch.plan.outlook import DAY_SECONDS, Estimate, LayoutOutlook, Outlook
from model.flops import matmul_parameters, parameters
from model.parametrization import parametrization_row
from pretrain.planning.memory import CONFIDENCE, Memory, shown_parts

EXACT, MEASURED, ASSUMED, CHOSEN = "exact", "measured", "assumed", "chosen"
TEXT_COLUMNS = ("layout", "stage", "recomputed")


@dataclass(frozen=True)
class Grid:
    """A table; `columns` maps names to confidence, and the first column names the row."""

    title: str
    columns: dict[str, str]
    rows: list[list[str]]


def speed_confidence(outlook: Outlook) -> str:
    """Returns the confidence of times and speeds."""
    return MEASURED if outlook.calibration else ASSUMED


def memory_confidence(outlook: Outlook) -> str:
    """Returns the confidence of the activations, and with them of the total."""
    return MEASURED if outlook.measured_memory else ASSUMED


def layouts(outlook: Outlook, at_most: int | None = None) -> Grid:
    """Returns the layouts that fit, fastest first."""
    speed = speed_confidence(outlook)
    columns = {"layout": "", "micro-batch": CHOSEN, "blank": EXACT, "recomputed": CHOSEN}
    columns |= {"GiB per GPU": memory_confidence(outlook)}
    columns |= {"tokens/s per GPU": speed, "scaling": ASSUMED, "days": speed}
    world, tokens = outlook.config.cluster.world_size, outlook.tokens
    rows = []
    for layout in outlook.layouts[:at_most]:
        worst = min(stage.scaling_efficiency for stage in layout.stages)
        rate = layout.days.map(lambda days: tokens / (days * DAY_SECONDS) / world)
        rows.append(
            [
                layout.option.name,
                f"{layout.option.parallel.micro_batch_tokens:,}",
                f"{layout.option.blank:.1%}",
                layout.option.parallel.activation_checkpointing,
                f"{memory_of(layout).total / GIB:.1f}",
                format_range(rate, ",.0f"),
                f"{worst:.1%}",
                format_range(layout.days, ",.2f"),
            ]
        )
    return Grid("layouts that fit, fastest first", columns, rows)


def stages(outlook: Outlook) -> Grid:
    """Returns the stages in the best layout."""
    speed = speed_confidence(outlook)
    names = ("sequence", "tokens", "batch", "blank", "GFLOP per token")
    columns = {"stage": "", **dict.fromkeys(names, EXACT), "step, s": speed, "MFU": speed}
    columns |= {"scaling": ASSUMED, "days": speed}
    rows = [
        [
            found.stage.name,
            f"{found.stage.seq_len:,}",
            f"{found.tokens:,}",
            f"{found.batch_tokens:,}",
            f"{found.deal.blank_share:.1%}",
            f"{found.flops_per_token / 1e9:.4g}",
            format_range(Estimate(found.times[0].total, found.times[1].total), ".3g"),
            format_range(found.mfu, ".1%"),
            f"{found.scaling_efficiency:.1%}",
            format_range(found.days, ",.2f"),
        ]
        for found in outlook.best.stages
    ]
    return Grid(f"stages, {outlook.best.option.name}", columns, rows)


def memory(outlook: Outlook, at_most: int | None = None) -> Grid:
    """Returns the memory per GPU by part, for every layout that fits."""
    rows = []
    shown = shown_parts(map(memory_of, outlook.layouts))
    for layout in outlook.layouts[:at_most]:
        found = memory_of(layout)
        parts = [f"{getattr(found, name) / GIB:.2f}" for name in shown]
        rows.append([layout.option.name, *parts, f"{found.total / GIB:.1f}"])
    sure = memory_confidence(outlook)
    columns = {"layout": "", **{name: CONFIDENCE[name] for name in shown}}
    columns |= {"activations": sure, "loss": sure, "total": sure}
    return Grid("memory per GPU at the peak, GiB", columns, rows)


def totals(outlook: Outlook) -> list[tuple[str, str, str]]:
    """Returns rows of (name, value, confidence) for the whole run in the best layout."""
    config, reliability = outlook.config, outlook.reliability
    cluster, model = config.cluster, config.model
    speed = speed_confidence(outlook)
    rate = outlook.best.days.map(lambda d: outlook.tokens / (d * DAY_SECONDS))
    found = [
        (
            "parameters",
            f"{parameters(model):,} ({matmul_parameters(model):,} in matrix products)",
            EXACT,
        ),
        *((name, text, EXACT) for name, text in parametrization_row(model).items()),
        ("tokens", _tokens(outlook), EXACT),
        ("tokens/s", format_range(rate, ",.0f"), speed),
        ("- per GPU", format_range(rate.map(lambda r: r / cluster.world_size), ",.0f"), speed),
        ("days", format_range(outlook.days, ",.2f"), speed),
        ("GPU-hours", format_range(outlook.gpu_hours, ",.0f"), speed),
    ]
    if cluster.gpu_hour_price or cluster.kwh_price:
        prices = {"GPU-hour": cluster.gpu_hour_price, "kWh": cluster.kwh_price}
        rates = " and ".join(f"{price:g} per {unit}" for unit, price in prices.items() if price)
        cost = f"{format_range(outlook.cost, ',.0f')} {cluster.currency}"
        found.append(("cost", cost, f"{speed}, at {rates}"))
    if cluster.gpu_watts:
        energy = f"{format_range(outlook.energy_kwh, ',.0f')} kWh"
        found.append(("energy", energy, f"{speed}, at {cluster.gpu_watts:g} W per GPU"))
    failure = f"one failure per {cluster.node_mttf_days:g} node-days"
    found += [
        ("checkpoint size", format_bytes(reliability.checkpoint_bytes), EXACT),
        (
            "checkpoints",
            f"every {format_duration(reliability.interval_seconds)}, "
            f"{format_duration(reliability.save_seconds)} each",
            f"{ASSUMED}, Young's rule, {cluster.storage_gb_s:g} GB/s per node, {failure}",
        ),
        (
            "failures",
            f"{reliability.failures:.1f} expected; with saves they take {reliability.lost:.1%}",
            f"{ASSUMED}, {failure}",
        ),
        ("data on disk", f"{format_bytes(outlook.data_bytes)} for one pass", EXACT),
    ]
    for stage in (one.stage for one in outlook.best.stages):
        fim = [f"{source} {options.describe()}" for source, options in stage.fim.items()]
        if fim:
            found.append((f"FIM in {stage.name}", ", ".join(fim), EXACT))
    if size := outlook.answer_bytes:
        each = size / outlook.tokens
        text = f"{format_bytes(size)}, {each:.1f} bytes per token"
        found.append(("teacher's answers, if cached", text, EXACT))
    found += [(f"epochs of {source}", f"{n:.2f}", EXACT) for source, n in outlook.epochs.items()]
    return found


def _tokens(outlook: Outlook) -> str:
    """Returns the tokens and steps of a run; of a branch, those that follow the fork."""
    text = f"{outlook.tokens:,} in {outlook.steps:,} steps"
    if outlook.fork:
        text += f" after step {outlook.fork:,} of the trunk"
    return text


def memory_of(layout: LayoutOutlook) -> Memory:
    """Returns the memory of a layout that fits."""
    assert layout.option.memory is not None
    return layout.option.memory


def format_range(found: Estimate, form: str) -> str:
    """Formats an estimate as `low to high`, or as one number if both are formatted alike."""
    low, high = format(found.low, form), format(found.high, form)
    return low if low == high else f"{low} to {high}"
