"""The plan's tables, for the terminal and the page alike: under each heading stands how sure its
numbers are."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from conf.text import GIB, format_duration
from launch.plan.outlook import LayoutOutlook, Outlook, Span
from model.flops import matmul_parameters, parameters
from pretrain.planning.memory import KIND, Memory

EXACT, MEASURED, ASSUMED, CHOSEN = "exact", "measured", "assumed", "chosen"
TEXT = ("layout", "stage", "recomputed")
"""Columns of words."""


@dataclass(frozen=True)
class Grid:
    """A table. columns: name to how sure it is; the first column names the row."""

    title: str
    columns: dict[str, str]
    rows: list[list[str]]


def speed_kind(outlook: Outlook) -> str:
    """How sure times and speeds are."""
    return MEASURED if outlook.measured else ASSUMED


def layouts(outlook: Outlook, at_most: int | None = None) -> Grid:
    """Those that fit, fastest first."""
    speed = speed_kind(outlook)
    columns = {"layout": "", "micro-batch": CHOSEN, "blank": EXACT, "recomputed": CHOSEN}
    columns |= {"GiB of a GPU": ASSUMED}
    columns |= {"tokens/s a GPU": speed, "scaling": ASSUMED, "days": speed}
    world, tokens = outlook.config.cluster.world_size, outlook.plan.total_tokens
    rows = []
    for layout in outlook.layouts[:at_most]:
        worst = min(stage.scaling_efficiency for stage in layout.stages)
        rate = layout.days.map(lambda days: tokens / (days * 86_400) / world)
        rows.append(
            [
                layout.option.name,
                f"{layout.option.parallel.micro_batch_tokens:,}",
                f"{layout.option.blank:.1%}",
                layout.option.parallel.activation_checkpointing,
                f"{memory_of(layout).total / GIB:.1f}",
                span(rate, ",.0f"),
                f"{worst:.1%}",
                span(layout.days, ",.2f"),
            ]
        )
    return Grid("layouts that fit, fastest first", columns, rows)


def stages(outlook: Outlook) -> Grid:
    """Of the best layout."""
    speed = speed_kind(outlook)
    names = ("sequence", "tokens", "batch", "blank", "GFLOP a token")
    columns = {"stage": "", **dict.fromkeys(names, EXACT), "step, s": speed, "MFU": speed}
    columns |= {"scaling": ASSUMED, "days": speed}
    rows = [
        [
            found.stage.name,
            f"{found.stage.seq_len:,}",
            f"{found.stage.tokens:,}",
            f"{found.batch_tokens:,}",
            f"{found.deal.blank_share:.1%}",
            f"{found.flops_per_token / 1e9:.4g}",
            span(Span(found.times[0].total, found.times[1].total), ".3g"),
            span(found.mfu, ".1%"),
            f"{found.scaling_efficiency:.1%}",
            span(found.days, ",.2f"),
        ]
        for found in outlook.best.stages
    ]
    return Grid(f"stages, {outlook.best.option.name}", columns, rows)


def memory(outlook: Outlook, at_most: int | None = None) -> Grid:
    """Of a GPU, by part, of every layout that fits."""
    rows = []
    for layout in outlook.layouts[:at_most]:
        found = memory_of(layout)
        parts = [f"{size / GIB:.2f}" for size in asdict(found).values()]
        rows.append([layout.option.name, *parts, f"{found.total / GIB:.1f}"])
    columns = {"layout": "", **KIND, "total": ASSUMED}
    return Grid("memory of a GPU at the peak, GiB", columns, rows)


def totals(outlook: Outlook) -> list[tuple[str, str, str]]:
    """(what, value, how sure it is) of the whole run on the best layout."""
    config, reliability = outlook.config, outlook.reliability
    cluster, model = config.cluster, config.model
    speed = speed_kind(outlook)
    rate = outlook.best.days.map(lambda d: outlook.plan.total_tokens / (d * 86_400))
    found = [
        ("parameters", f"{parameters(model):,} ({matmul_parameters(model):,} multiply)", EXACT),
        ("tokens", f"{outlook.plan.total_tokens:,} in {outlook.plan.total_steps:,} steps", EXACT),
        ("tokens/s", span(rate, ",.0f"), speed),
        ("- a GPU", span(rate.map(lambda r: r / cluster.world_size), ",.0f"), speed),
        ("days", span(outlook.days, ",.2f"), speed),
        ("GPU-hours", span(outlook.gpu_hours, ",.0f"), speed),
    ]
    if cluster.gpu_hour_price or cluster.kwh_price:
        prices = {"GPU-hour": cluster.gpu_hour_price, "kWh": cluster.kwh_price}
        stated = " and ".join(f"{price:g} a {unit}" for unit, price in prices.items() if price)
        cost = f"{span(outlook.cost, ',.0f')} {cluster.currency}"
        found.append(("cost", cost, f"{speed}, at {stated}"))
    if cluster.gpu_watts:
        energy = f"{span(outlook.energy_kwh, ',.0f')} kWh"
        found.append(("energy", energy, f"{speed}, at {cluster.gpu_watts:g} W a GPU"))
    failure = f"one failure in {cluster.node_mttf_days:g} node-days"
    found += [
        ("a checkpoint", size(reliability.checkpoint_bytes), EXACT),
        (
            "checkpoints",
            f"every {format_duration(reliability.interval_seconds)}, "
            f"{format_duration(reliability.save_seconds)} each",
            f"{ASSUMED}, Young's rule, {cluster.storage_gb_s:g} GB/s a node, {failure}",
        ),
        (
            "failures",
            f"{reliability.failures:.1f} expected; with saves they take {reliability.lost:.1%}",
            f"{ASSUMED}, {failure}",
        ),
        ("data on disk", f"{size(outlook.data_bytes)} read once", EXACT),
    ]
    found += [(f"epochs of {source}", f"{n:.2f}", EXACT) for source, n in outlook.epochs.items()]
    return found


def memory_of(layout: LayoutOutlook) -> Memory:
    """Of a layout that fits."""
    assert layout.option.memory is not None
    return layout.option.memory


def span(found: Span, form: str) -> str:
    """Both ends, or one where they look the same."""
    low, high = format(found.low, form), format(found.high, form)
    return low if low == high else f"{low} to {high}"


def size(count: float) -> str:
    """Of a file or many."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
