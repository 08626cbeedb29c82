"""The command line `python -m model inspect|import|remap_vocab|gguf key=value ...`."""

from conf.entry import Command, main

COMMANDS = {
    "inspect": Command(
        config="inspect",
        schema="model.inspect:InspectConfig",
        run="model.inspect:inspect",
        summary="prints the parameters, FLOPs per token and memory of a model",
    ),
    "import": Command(
        config="import_model",
        schema="model.import_checkpoint:ImportModelConfig",
        run="model.import_checkpoint:import_checkpoint",
        summary="makes a Hugging Face folder from a checkpoint of another trainer",
    ),
    "remap_vocab": Command(
        config="remap_vocab",
        schema="model.remap_vocab:RemapVocabConfig",
        run="model.remap_vocab:remap_vocab",
        summary="replaces a model's tokenizer and keeps the embeddings of shared tokens",
    ),
    "gguf": Command(
        config="gguf",
        schema="model.gguf.command:GGUFConfig",
        run="model.gguf.command:gguf",
        summary="writes a model as a GGUF file for llama.cpp and programs built on it",
    ),
}

if __name__ == "__main__":
    main("model", COMMANDS)
