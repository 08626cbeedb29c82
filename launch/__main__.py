"""`python -m launch demo`."""

from conf.entry import Command, main

COMMANDS = {
    "demo": Command(
        config="demo",
        schema="launch.pipeline:PipelineConfig",
        run="launch.demo:demo",
        summary="the whole path on this machine: raw text to an evaluated chat model",
    ),
}

if __name__ == "__main__":
    main("launch", COMMANDS)
