"""`python -m launch demo|plan key=value ...`."""

from conf.entry import Command, main

COMMANDS = {
    "demo": Command(
        config="demo",
        schema="launch.pipeline:PipelineConfig",
        run="launch.demo:demo",
        summary="the whole path on this machine: raw text to an evaluated chat model",
    ),
    "plan": Command(
        config="plan",
        schema="launch.plan.outlook:PlanConfig",
        run="launch.plan.show:plan",
        summary="what a run will need, take and cost: layouts, memory, days, price",
    ),
}

if __name__ == "__main__":
    main("launch", COMMANDS)
