"""`python -m launch plan`: prints the plan on the terminal and writes it as a page."""

from __future__ import annotations

from rich.table import Table

from conf.output_kinds import PAGE
from conf.outputs import Output
from conf.text import table_console
from launch import training
from launch.plan.config import PlanConfig
from launch.plan.outlook import Outlook, make_outlook
from launch.plan.page import render_plan
from launch.plan.run_settings import take_run_settings
from launch.plan.tables import TEXT_COLUMNS, Grid, layouts, memory, stages, totals


def plan(config: PlanConfig) -> None:
    """Prints the plan, and writes the page if `out` is given."""
    output = Output(config.out, PAGE, config.overwrite) if config.out is not None else None
    if output:
        output.check()
    fork = 0
    if training.overrides:
        config, fork = take_run_settings(config, training.compose(training.overrides))
    outlook = make_outlook(config, fork)
    console = table_console()
    console.print(_head(outlook))
    for grid in (layouts(outlook, config.show), stages(outlook), memory(outlook, config.show)):
        console.print(_table(grid))
    for label, value, confidence in totals(outlook):
        console.print(f"  {label:<22} {value}  [dim]{confidence}[/dim]", soft_wrap=True)
    for warning in outlook.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", soft_wrap=True)
    for option in outlook.refused:
        console.print(f"[dim]{option.name}: {option.problem}[/dim]", soft_wrap=True)
    if output:
        output.write(render_plan(outlook))
        console.print(f"{config.out}: the plan as a page")


def _head(outlook: Outlook) -> str:
    config, cluster = outlook.config, outlook.config.cluster
    how = (
        f"calibrated with {outlook.calibration}"
        if outlook.calibration
        else "from typical to best known"
    )
    return (
        f"[bold]{config.model.name}[/bold], recipe {config.recipe.name}, {config.precision}, on "
        f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu}; speeds {how}"
    )


def _table(grid: Grid) -> Table:
    table = Table(title=grid.title, title_justify="left")
    for name in grid.columns:
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right")
    table.add_row(*grid.columns.values(), style="dim", end_section=True)
    for row in grid.rows:
        table.add_row(*row)
    return table
