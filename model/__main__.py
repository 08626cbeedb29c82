"""`python -m model inspect model=... seq_len=...`."""

from conf.entry import Command, main

COMMANDS = {
    "inspect": Command(
        config="inspect",
        schema="model.inspect:InspectConfig",
        run="model.inspect:inspect",
        summary="prints parameters, FLOPs per token and memory of a model",
    ),
}

if __name__ == "__main__":
    main("model", COMMANDS)
