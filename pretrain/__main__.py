"""The command line of pretraining: `python -m pretrain [COMMAND] key=value ...`."""

from conf.entry import Command, main

COMMANDS = {
    "train": Command(
        config="pretrain",
        schema="pretrain.config:PretrainConfig",
        run="pretrain.train:train",
        base="pretrain.start_choice:take_groups",
        complete="pretrain.start_choice:take_start",
        summary="trains a model from scratch; the same command again continues it (the default)",
    ),
    "memory": Command(
        config="memory",
        schema="pretrain.planning.command:MemoryConfig",
        run="pretrain.planning.command:memory",
        complete="pretrain.model_choice:take_model",
        summary="lists the layouts of a model that fit into memory, with the bytes of each rank",
    ),
    "checkpoints": Command(
        config="checkpoints",
        schema="pretrain.checkpoints.command:CheckpointsConfig",
        run="pretrain.checkpoints.command:checkpoints",
        summary="lists the checkpoints of a run and their state; do=verify reads every byte",
    ),
    "export": Command(
        config="export",
        schema="pretrain.export:ExportConfig",
        run="pretrain.export:export",
        summary="exports a step of a run as a Hugging Face folder",
    ),
    "teach": Command(
        config="teach",
        schema="pretrain.teacher_cache.config:TeachConfig",
        run="pretrain.teacher_cache.command:teach",
        base="pretrain.start_choice:take_taught_groups",
        complete="pretrain.start_choice:take_taught_recipe",
        summary="writes a teacher's answers to the samples of a run, for objective=distill",
    ),
    "average": Command(
        config="average",
        schema="pretrain.averages.command:AverageConfig",
        run="pretrain.averages.command:average",
        summary="averages checkpoints of one or several runs",
    ),
    "receipts": Command(
        config="receipts",
        schema="pretrain.health.receipts:ReceiptsConfig",
        run="pretrain.health.receipts:receipts",
        summary="compares two runs bit by bit",
    ),
}

if __name__ == "__main__":
    main("pretrain", COMMANDS, default="train")
