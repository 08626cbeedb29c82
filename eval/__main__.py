"""Runs `python -m eval COMMAND key=value ...`."""

from conf.entry import Command, main
from conf.terminal import silence_torchao

COMMANDS = {
    "build_tasks": Command(
        config="build_tasks",
        schema="eval.tasks.build_tasks:BuildTasksConfig",
        run="eval.tasks.build_tasks:build_tasks",
        summary="builds lm-eval tasks from the held-out files of a corpus",
    ),
    "lm_eval": Command(
        config="lm_eval",
        schema="eval.scores.config:LmEvalConfig",
        run="eval.scores.harness:lm_eval",
        summary="scores models side by side on lm-eval tasks, local or built in",
    ),
    "compare": Command(
        config="compare",
        schema="eval.scores.compare:CompareConfig",
        run="eval.scores.compare:compare",
        summary="compares result files and marks the significant differences",
    ),
    "published": Command(
        config="published",
        schema="eval.scores.published:PublishedConfig",
        run="eval.scores.published:print_published",
        summary="prints the score tables of the Danube reports",
    ),
    "fetch": Command(
        config="fetch",
        schema="eval.tasks.fetch:FetchConfig",
        run="eval.tasks.fetch:fetch",
        summary="downloads the data sets of tasks, for machines without a network",
    ),
    "perplexity": Command(
        config="perplexity",
        schema="eval.scores.perplexity:PerplexityConfig",
        run="eval.scores.perplexity:perplexity",
        summary="measures held-out loss and bits per byte of an exported model in transformers",
    ),
    "generate": Command(
        config="generate",
        schema="eval.chat.generate:GenerateConfig",
        run="eval.chat.generate:generate",
        summary="continues prompts, or answers them as a chat model",
    ),
    "chat": Command(
        config="chat",
        schema="eval.chat.chat:ChatConfig",
        run="eval.chat.chat:chat",
        summary="chats with a model in the terminal, or through a pipe",
    ),
    "serve": Command(
        config="serve",
        schema="eval.chat.serve:ServeConfig",
        run="eval.chat.serve:serve",
        summary="serves an OpenAI-compatible endpoint and a web page to chat with it",
    ),
    "publish": Command(
        config="publish",
        schema="eval.publish.config:PublishConfig",
        run="eval.publish.publish:publish",
        summary="puts a model and steps of its training on the Hugging Face Hub",
    ),
    "report": Command(
        config="report",
        schema="eval.report.config:ReportConfig",
        run="eval.report.command:report",
        summary="writes one HTML page about a run, its data, models and samples",
    ),
}

if __name__ == "__main__":
    silence_torchao()  # transformers imports torchao if it is installed
    main("eval", COMMANDS)
