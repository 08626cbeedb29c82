"""`python -m launch plan`: the plan on a terminal, and as a page."""

from __future__ import annotations

from rich.table import Table

from conf.output_kinds import PAGE
from conf.outputs import Output
from conf.text import table_console
from launch import training
from launch.plan.outlook import Outlook, PlanConfig, look_ahead
from launch.plan.page import page
from launch.plan.run_settings import of_run
from launch.plan.tables import TEXT, Grid, layouts, memory, stages, totals

"""In columns, where the output goes to a file."""


def plan(config: PlanConfig) -> None:
    """Prints the plan; writes the page where `out` is given."""
    output = Output(config.out, PAGE, config.overwrite) if config.out is not None else None
    if output:
        output.check()
    if training.overrides:
        config = of_run(config, training.compose(training.overrides))
    outlook = look_ahead(config)
    console = table_console()
    console.print(_head(outlook))
    for grid in (layouts(outlook, config.show), stages(outlook), memory(outlook, config.show)):
        console.print(_table(grid))
    for label, value, sure in totals(outlook):
        console.print(f"  {label:<22} {value}  [dim]{sure}[/dim]", soft_wrap=True)
    for warning in outlook.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", soft_wrap=True)
    for option in outlook.refused:
        console.print(f"[dim]{option.name}: {option.problem}[/dim]", soft_wrap=True)
    if output:
        output.write(page(outlook))
        console.print(f"{config.out}: the plan as a page")


def _head(outlook: Outlook) -> str:
    config, cluster = outlook.config, outlook.config.cluster
    how = f"calibrated by {outlook.measured}" if outlook.measured else "from usual to best known"
    return (
        f"[bold]{config.model.name}[/bold], recipe {config.recipe.name}, {config.precision}, on "
        f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu}; speeds {how}"
    )


def _table(grid: Grid) -> Table:
    table = Table(title=grid.title, title_justify="left")
    for name in grid.columns:
        table.add_column(name, justify="left" if name in TEXT else "right")
    table.add_row(*grid.columns.values(), style="dim", end_section=True)
    for row in grid.rows:
        table.add_row(*row)
    return table
