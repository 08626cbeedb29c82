"""`python -m pretrain [train] key=value ...`, `... memory model=...`, `... export run=...`,
`... checkpoints dir=...`."""

from conf.entry import Command, main

COMMANDS = {
    "train": Command(
        config="pretrain",
        schema="pretrain.config:PretrainConfig",
        run="pretrain.train:train",
        complete="pretrain.model_choice:take_model",
        summary="trains a model from scratch; the same command again continues it (the default)",
    ),
    "memory": Command(
        config="memory",
        schema="pretrain.planning.command:MemoryConfig",
        run="pretrain.planning.command:memory",
        complete="pretrain.model_choice:take_model",
        summary="lists the layouts of a model that fit, with the memory of each rank",
    ),
    "checkpoints": Command(
        config="checkpoints",
        schema="pretrain.checkpoints.command:CheckpointsConfig",
        run="pretrain.checkpoints.command:checkpoints",
        summary="lists the checkpoints of a run with verdicts; do=verify reads all of their bytes",
    ),
    "export": Command(
        config="export",
        schema="pretrain.export:ExportConfig",
        run="pretrain.export:export",
        summary="writes a step of a run as a Hugging Face folder",
    ),
    "receipts": Command(
        config="receipts",
        schema="pretrain.health.receipts:ReceiptsConfig",
        run="pretrain.health.receipts:receipts",
        summary="says whether two runs did the same, to the bit",
    ),
}

if __name__ == "__main__":
    main("pretrain", COMMANDS, default="train")
