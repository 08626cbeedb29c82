"""`python -m launch plan`: the plan on a terminal, and as a page."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch import training
from launch.plan.given import of_run
from launch.plan.outlook import LayoutOutlook, Outlook, PlanConfig, Span, look_ahead
from launch.plan.page import page
from model.flops import matmul_parameters, parameters
from pages.page import write_page
from pretrain.layout_choice import GIB
from pretrain.memory import KIND

LOG_WIDTH = 140
"""In columns, where the output goes to a file."""


def plan(config: PlanConfig) -> None:
    """Prints the plan; writes the page where `out` is given."""
    if training.overrides:
        config = of_run(config, training.compose(training.overrides))
    outlook = look_ahead(config)
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH, highlight=False)
    for part in (_head(outlook), _layouts(outlook), _stages(outlook), _memory(outlook.best)):
        console.print(part)
    for label, value, sure in totals(outlook):
        console.print(f"  {label:<22} {value}  [dim]{sure}[/dim]", soft_wrap=True)
    for warning in outlook.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", soft_wrap=True)
    for option in outlook.refused:
        console.print(f"[dim]{option.name}: {option.problem}[/dim]", soft_wrap=True)
    if config.out is not None:
        write_page(Path(config.out), page(outlook, totals(outlook)))
        console.print(f"{config.out}: the plan as a page")


def totals(outlook: Outlook) -> list[tuple[str, str, str]]:
    """(what, value, how sure it is) of the whole run on the best layout."""
    config, reliability = outlook.config, outlook.reliability
    cluster, model = config.cluster, config.model
    speed = "measured" if outlook.measured else "assumed"
    rate = outlook.best.days.map(lambda d: outlook.plan.total_tokens / (d * 86_400))
    found = [
        ("parameters", f"{parameters(model):,} ({matmul_parameters(model):,} multiply)", "exact"),
        ("tokens", f"{outlook.plan.total_tokens:,} in {outlook.plan.total_steps:,} steps", "exact"),
        ("tokens/s", span(rate, ",.0f"), speed),
        ("- a GPU", span(rate.map(lambda r: r / cluster.world_size), ",.0f"), speed),
        ("days", span(outlook.days, ",.2f"), speed),
        ("GPU-hours", span(outlook.gpu_hours, ",.0f"), speed),
    ]
    if cluster.gpu_hour_price or cluster.kwh_price:
        price = f"at {cluster.gpu_hour_price:g} a GPU-hour"
        found.append(("cost", f"{span(outlook.cost, ',.0f')} {cluster.currency}", price))
    if cluster.gpu_watts:
        energy = f"{span(outlook.energy_kwh, ',.0f')} kWh"
        found.append(("energy", energy, f"at {cluster.gpu_watts:g} W a GPU"))
    found += [
        ("a checkpoint", f"{reliability.checkpoint_bytes / 1e9:,.1f} GB", "exact"),
        (
            "checkpoints",
            f"every {duration(reliability.interval_seconds)}, "
            f"{duration(reliability.save_seconds)} each",
            f"Young's rule, {cluster.storage_gb_s:g} GB/s a node",
        ),
        (
            "failures",
            f"{reliability.failures:.1f} expected; with saves they take {reliability.lost:.1%}",
            f"assumed, one in {cluster.node_mttf_days:g} node-days",
        ),
        ("data on disk", f"{outlook.data_bytes / 1e9:,.1f} GB read once", "exact"),
    ]
    found += [(f"epochs of {source}", f"{n:.2f}", "exact") for source, n in outlook.epochs.items()]
    return found


def span(found: Span, form: str) -> str:
    """Both ends, or one where they look the same."""
    low, high = format(found.low, form), format(found.high, form)
    return low if low == high else f"{low} to {high}"


def duration(seconds: float) -> str:
    """A span of time as a person says it."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _head(outlook: Outlook) -> str:
    config, cluster = outlook.config, outlook.config.cluster
    how = f"calibrated by {outlook.measured}" if outlook.measured else "from usual to best known"
    return (
        f"[bold]{config.model.name}[/bold], recipe {config.recipe.name}, {config.precision}, on "
        f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu}; speeds {how}"
    )


def _layouts(outlook: Outlook) -> Table:
    table = Table(title="layouts that fit, fastest first", title_justify="left")
    for name in ("layout", "micro-batch", "recomputed", "GiB of a GPU", "tokens/s a GPU", "days"):
        table.add_column(name, justify="left" if name in ("layout", "recomputed") else "right")
    world, tokens = outlook.config.cluster.world_size, outlook.plan.total_tokens
    for layout in outlook.layouts[: outlook.config.show]:
        memory = layout.option.memory
        assert memory is not None
        rate = layout.days.map(lambda days: tokens / (days * 86_400) / world)
        table.add_row(
            layout.option.name,
            f"{layout.option.parallel.micro_batch_tokens:,}",
            layout.option.parallel.activation_checkpointing,
            f"{memory.total / GIB:.1f}",
            span(rate, ",.0f"),
            span(layout.days, ",.2f"),
        )
    return table


def _stages(outlook: Outlook) -> Table:
    table = Table(title=f"stages, {outlook.best.option.name}", title_justify="left")
    names = ("stage", "sequence", "tokens", "batch", "GFLOP a token", "step, s", "MFU", "scaling")
    for name in (*names, "days"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for found in outlook.best.stages:
        fast, usual = found.times
        table.add_row(
            found.stage.name,
            f"{found.stage.seq_len:,}",
            f"{found.stage.tokens:,}",
            f"{found.batch_tokens:,}",
            f"{found.flops_per_token / 1e9:.2f}",
            span(Span(fast.total, usual.total), ".3g"),
            span(found.mfu, ".1%"),
            f"{found.scaling_efficiency:.1%}",
            span(found.days, ",.2f"),
        )
    return table


def _memory(layout: LayoutOutlook) -> Table:
    memory = layout.option.memory
    assert memory is not None
    table = Table(title="memory of a GPU at the peak, GiB", title_justify="left")
    parts = asdict(memory)
    for name in (*parts, "total"):
        table.add_column(name, justify="right")
    table.add_row(*(KIND[name] for name in parts), "", style="dim")
    table.add_row(*(f"{size / GIB:.2f}" for size in parts.values()), f"{memory.total / GIB:.1f}")
    return table
