"""Runs `python -m data_pipeline <command> key=value ...`, or lists all commands without one."""

from conf.entry import Command, main

COMMANDS = {
    "tokenize": Command(
        config="tokenize",
        schema="data_pipeline.text.corpus:TokenizeConfig",
        run="data_pipeline.tokenizing.tokenize:tokenize",
        summary="tokenizes a corpus into shards with a manifest, and trains the tokenizer",
    ),
    "plan": Command(
        config="plan_data",
        schema="data_pipeline.sizing.config:PlanDataConfig",
        run="data_pipeline.sizing.command:plan",
        summary="plans a preparation from a sample: drops, tokens, time, memory, disk, jobs",
    ),
    "quality": Command(
        config="quality",
        schema="data_pipeline.text.train_quality:QualityConfig",
        run="data_pipeline.text.train_quality:quality",
        summary="trains a text classifier from examples, for the cleaning step `quality`",
    ),
    "pairs": Command(
        config="pairs",
        schema="data_pipeline.pairs:PairsConfig",
        run="data_pipeline.pairs:pairs",
        summary="extracts functions and docstrings of a corpus as pairs for instruction tuning",
    ),
    "where": Command(
        config="where",
        schema="data_pipeline.trace:WhereConfig",
        run="data_pipeline.trace:where",
        summary="shows what a step of a run was trained on, or which steps saw a document",
    ),
    "inspect": Command(
        config="inspect_data",
        schema="data_pipeline.inspection.config:InspectConfig",
        run="data_pipeline.inspection.inspect_page:inspect",
        summary="writes an HTML page about a corpus, its cleaning and the plan of a recipe",
    ),
    "verify": Command(
        config="verify",
        schema="data_pipeline.store.verify:VerifyConfig",
        run="data_pipeline.store.verify:verify",
        summary="verifies a folder of shards, or a sample of it",
    ),
    "import": Command(
        config="import",
        schema="data_pipeline.import_shards.config:ImportConfig",
        run="data_pipeline.import_shards.command:import_shards",
        summary="imports shards of Megatron-LM, NeMo or GPT-NeoX without copying them",
    ),
}

if __name__ == "__main__":
    main("data_pipeline", COMMANDS)
