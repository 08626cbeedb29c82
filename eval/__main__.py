"""`python -m eval COMMAND key=value ...`."""

from conf.entry import Command, main
from conf.quiet import quiet_torchao

COMMANDS = {
    "build_tasks": Command(
        config="build_tasks",
        schema="eval.build_tasks:BuildTasksConfig",
        run="eval.build_tasks:build_tasks",
        summary="makes tasks for lm-eval out of the held-out files of a corpus",
    ),
    "lm_eval": Command(
        config="lm_eval",
        schema="eval.suites:LmEvalConfig",
        run="eval.harness:lm_eval",
        summary="scores models side by side on tasks of lm-eval, local or built in",
    ),
    "compare": Command(
        config="compare",
        schema="eval.compare:CompareConfig",
        run="eval.compare:compare",
        summary="files of results side by side, and which differences are more than chance",
    ),
    "published": Command(
        config="published",
        schema="eval.published:PublishedConfig",
        run="eval.published:print_published",
        summary="prints the tables of the Danube reports that ship with the code",
    ),
    "fetch": Command(
        config="fetch",
        schema="eval.fetch:FetchConfig",
        run="eval.fetch:fetch",
        summary="loads the data sets of tasks into the cache, for machines without a network",
    ),
    "perplexity": Command(
        config="perplexity",
        schema="eval.perplexity:PerplexityConfig",
        run="eval.perplexity:perplexity",
        summary="held-out loss and bits per byte of an exported model in stock transformers",
    ),
    "generate": Command(
        config="generate",
        schema="eval.generate:GenerateConfig",
        run="eval.generate:generate",
        summary="lets a model continue prompts, or answer them as a chat",
    ),
    "chat": Command(
        config="chat",
        schema="eval.chat:ChatConfig",
        run="eval.chat:chat",
        summary="a conversation with a model in the terminal, or through a pipe",
    ),
    "serve": Command(
        config="serve",
        schema="eval.serve:ServeConfig",
        run="eval.serve:serve",
        summary="an OpenAI-compatible endpoint, and a web page to chat with it",
    ),
    "report": Command(
        config="report",
        schema="eval.report:ReportConfig",
        run="eval.report:report",
        summary="writes one HTML page about a run, its data, models and samples",
    ),
}

if __name__ == "__main__":
    quiet_torchao()  # transformers imports it where it finds it
    main("eval", COMMANDS)
