"""`python -m pretrain [train] key=value ...`, `python -m pretrain export run=... out=...`."""

from conf.entry import Command, main

COMMANDS = {
    "train": Command(
        config="pretrain",
        schema="pretrain.config:PretrainConfig",
        run="pretrain.train:train",
        summary="trains a model from scratch; the same command again continues it (the default)",
    ),
    "export": Command(
        config="export",
        schema="pretrain.export:ExportConfig",
        run="pretrain.export:export",
        summary="writes a step of a run as a Hugging Face folder",
    ),
}

if __name__ == "__main__":
    main("pretrain", COMMANDS, default="train")
