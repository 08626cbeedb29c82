"""`python -m data_pipeline <command> key=value ...`; without a command it lists them."""

from conf.entry import Command, main

COMMANDS = {
    "tokenize": Command(
        config="tokenize",
        schema="data_pipeline.text.corpus:TokenizeConfig",
        run="data_pipeline.tokenizing.tokenize:tokenize",
        summary="a corpus to a tokenizer and tokenized shards with a manifest",
    ),
    "quality": Command(
        config="quality",
        schema="data_pipeline.text.train_quality:QualityConfig",
        run="data_pipeline.text.train_quality:quality",
        summary="a classifier of good text from examples, for the cleaning step `quality`",
    ),
    "pairs": Command(
        config="pairs",
        schema="data_pipeline.pairs:PairsConfig",
        run="data_pipeline.pairs:pairs",
        summary="functions and docstrings of a corpus as pairs for instruct tuning",
    ),
    "where": Command(
        config="where",
        schema="data_pipeline.trace:WhereConfig",
        run="data_pipeline.trace:where",
        summary="what a step of a run was trained on, or the steps that saw a document",
    ),
    "inspect": Command(
        config="inspect_data",
        schema="data_pipeline.inspection.inspect_page:InspectConfig",
        run="data_pipeline.inspection.inspect_page:inspect",
        summary="an HTML page about a corpus, what its cleaning dropped and what a recipe takes",
    ),
    "verify": Command(
        config="verify",
        schema="data_pipeline.store.verify:VerifyConfig",
        run="data_pipeline.store.verify:verify",
        summary="re-checks a folder of shards, all of it or a sample",
    ),
    "import": Command(
        config="import",
        schema="data_pipeline.import_shards:ImportConfig",
        run="data_pipeline.import_shards:import_shards",
        summary="adopts shards that Megatron-LM, NeMo or GPT-NeoX made, without copying them",
    ),
}

if __name__ == "__main__":
    main("data_pipeline", COMMANDS)
