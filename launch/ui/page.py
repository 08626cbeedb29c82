"""The page itself: make data, choose, plan, train, watch, chat."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pandas

from conf.errors import InputError
from conf.files import write_text
from conf.text import format_duration
from launch.slurm.manage import look
from launch.ui import commands
from launch.ui.commands import Form, Started

CHAT, DATA = "chat", "data"
SECONDS = 3
"""Between two looks at a run."""
CSS = """
footer {display: none !important}
.frame iframe {width: 100%; height: 70vh; border: 1px solid var(--border-color-primary);
  border-radius: 8px; background: white}
.said textarea {font-family: var(--font-mono); font-size: 0.8rem}
.gradio-container {width: 100% !important; max-width: 1100px !important; margin: auto}
"""
PROMPTS = "def main(\nThe module\nimport os"


def build(folder: Path, started: Started, chat_port: int) -> Any:
    """The page, for the runs in a folder."""
    with gr.Blocks(title="Headwater", analytics_enabled=False) as page:
        gr.Markdown("# Headwater\nEach button runs the command that it shows; nothing else.")
        known = commands.corpora()
        data = gr.Dropdown(
            known,
            value=known[0] if known else None,
            label="corpus (tokenized)",
            allow_custom_value=True,
            render=False,
        )
        with gr.Tabs(selected="train" if known else "data"):
            with gr.Tab("Data", id="data"):
                _data_tab(page, folder, started, data)
            with gr.Tab("Train", id="train"):
                _train_tab(page, folder, started, data)
            with gr.Tab("Watch"):
                _watch_tab(page, folder, started)
            with gr.Tab("Chat"):
                _chat_tab(page, folder, started, chat_port)
    return page


def _data_tab(page: Any, folder: Path, started: Started, data: Any) -> None:
    """data: the corpora that one can train on."""
    with gr.Row():
        corpus = gr.Dropdown(commands.choices("corpus"), value="python_docs", label="text")
        tokenizer = gr.Dropdown(commands.choices("tokenizer"), value="bpe_8k", label="tokenizer")
    more = gr.Textbox(
        "", label="more overrides of the text", placeholder="corpus.sources.text.paths=[notes]"
    )
    make = gr.Button("Tokenize", variant="primary")
    fields: list[Any] = [corpus, tokenizer, more]
    line = _said("command", 1)
    log = _said("log", 6)
    timer = gr.Timer(SECONDS)
    path = folder / "tokenize.log"

    def preview(corpus: str, tokenizer: str, more: str) -> str:
        try:
            return commands.shown(commands.tokenize(corpus, tokenizer, more))
        except InputError as error:
            return f"# {error}"

    def made(corpus: str, tokenizer: str, more: str) -> str:
        command = commands.tokenize(corpus, tokenizer, more)
        if not started.runs(DATA):
            path.unlink(missing_ok=True)
        started.start(DATA, command, path)
        return commands.shown(command)

    def watched(chosen: str | None) -> tuple[str, Any]:
        known = commands.corpora()
        chosen = chosen or (known[0] if known else None)
        return commands.tail(path), gr.Dropdown(choices=known, value=chosen)

    page.load(preview, fields, line, show_progress="hidden")
    for item in fields:
        item.change(preview, fields, line, show_progress="hidden")
    make.click(spoken(made), fields, line)
    timer.tick(watched, data, [log, data], show_progress="hidden")


def _train_tab(page: Any, folder: Path, started: Started, data: Any) -> None:
    with gr.Row():
        name = gr.Textbox("first", label="name of the run")
        model = gr.Dropdown(commands.choices("model"), value="demo_12m", label="model")
        recipe = gr.Dropdown(commands.choices("recipe"), value="demo", label="recipe")
    with gr.Row():
        data.render()
        optim = gr.Dropdown(commands.choices("optim"), value="adamw_demo", label="optimizer")
        processes = gr.Number(1, label="processes here", minimum=1, precision=0)
        cluster = gr.Dropdown(commands.choices("cluster"), value="laptop", label="plan it for")
    more = gr.Textbox("", label="more overrides", placeholder="seed=1 parallel=fsdp", lines=1)
    fields: list[Any] = [name, model, recipe, optim, data, processes, cluster, more]
    line = _said("command", 3)
    with gr.Row():
        plan = gr.Button("Plan")
        train = gr.Button("Train", variant="primary")
    said = gr.Markdown()
    frame = gr.HTML(elem_classes="frame")

    def form(*values: Any) -> Form:
        name, model, recipe, optim, data, processes, cluster, more = values
        return Form(
            name, model, recipe, optim, data or "", int(processes), cluster, folder, more or ""
        )

    def planned(*values: Any) -> tuple[str, str, str]:
        chosen = form(*values)
        commands.run_now(chosen.plan())
        return commands.shown(chosen.plan()), "", framed(chosen.plan_page)

    def trained(*values: Any) -> tuple[str, str, str]:
        chosen = form(*values)
        line = commands.train(started, chosen)
        return line, f"**{chosen.run_dir}** trains: look at it under *Watch*.", ""

    def preview(*values: Any) -> str:
        try:
            return commands.shown(form(*values).train())
        except InputError as error:
            return f"# {error}"

    page.load(preview, fields, line, show_progress="hidden")
    for item in fields:
        item.change(preview, fields, line, show_progress="hidden")
    plan.click(spoken(planned), fields, [line, said, frame])
    train.click(spoken(trained), fields, [line, said, frame])


def _watch_tab(page: Any, folder: Path, started: Started) -> None:
    with gr.Row():
        run = gr.Dropdown([], label="run", allow_custom_value=True, scale=3)
        stop = gr.Button("Stop", variant="stop")
        report = gr.Button("Report")
    state = gr.Markdown("No run yet.")
    loss = gr.LinePlot(
        x="step", y="loss", color="of", title="loss, nats a token", height=280, visible=False
    )
    log = _said("log", 6)
    with gr.Row():
        prompts = gr.Textbox(PROMPTS, label="prompts, one a line", lines=3)
        with gr.Column():
            tokens = gr.Slider(16, 256, 48, step=16, label="tokens to write")
            write = gr.Button("Write samples from the newest checkpoint")
    line = _said("command", 1)
    text = _said("samples", 3)
    frame = gr.HTML(elem_classes="frame")
    timer = gr.Timer(SECONDS)

    def watched(chosen: str | None) -> tuple[Any, ...]:
        known = commands.runs(folder)
        chosen = chosen or (known[0] if known else None)
        if not chosen:
            nothing = gr.skip()
            return gr.Dropdown(choices=known), "No run yet.", nothing, nothing
        found, log = commands.curves(Path(chosen)), commands.tail(Path(chosen) / "ui.log")
        return (
            gr.Dropdown(choices=known, value=chosen),
            standing(Path(chosen)),
            gr.LinePlot(pandas.DataFrame(found), visible=bool(found["step"])),
            gr.Textbox(log, visible=bool(log)),
        )

    def stopped(chosen: str) -> str:
        commands.run_now(commands.stop(chosen))
        return commands.shown(commands.stop(chosen))

    def written(chosen: str, prompts: str, tokens: float) -> tuple[str, str]:
        path = Path(chosen) / "prompts.txt"
        write_text(path, "\n".join(filter(None, prompts.splitlines())) + "\n")
        command = commands.samples(chosen, path, int(tokens))
        return commands.shown(command), commands.run_now(command)

    def reported(chosen: str) -> tuple[str, str]:
        command = commands.report(chosen)
        commands.run_now(command)
        return commands.shown(command), framed(Path(chosen) / "report.html")

    for event in (page.load, timer.tick, run.change):
        event(watched, run, [run, state, loss, log], show_progress="hidden")
    stop.click(spoken(stopped), run, line)
    report.click(spoken(reported), run, [line, frame])
    write.click(spoken(written), [run, prompts, tokens], [line, text])


def _chat_tab(page: Any, folder: Path, started: Started, port: int) -> None:
    with gr.Row():
        model = gr.Dropdown(
            [],
            label="run, checkpoint, exported folder or name on the Hub",
            allow_custom_value=True,
            scale=3,
        )
        start = gr.Button("Serve", variant="primary")
        end = gr.Button("Stop serving", variant="stop")
    line = _said("command", 1)
    log = _said("log", 3)
    frame = gr.HTML(elem_classes="frame")
    timer = gr.Timer(SECONDS)
    shown = gr.State(False)
    path = folder / "chat.log"

    def served(chosen: str | None) -> tuple[str, bool, str]:
        if not chosen:
            raise InputError("choose a model to serve.")
        started.end(CHAT)
        path.unlink(missing_ok=True)
        command = commands.chat(chosen, port)
        started.start(CHAT, command, path)
        return commands.shown(command), False, ""

    def ended() -> tuple[bool, str]:
        started.end(CHAT)
        return False, ""

    def watched(shown: bool, request: gr.Request) -> tuple[str, bool, Any]:
        """The chat's own page in a frame, once it is there."""
        log = commands.tail(path) if started.runs(CHAT) else ""
        if shown or "\npage: " not in log:
            return log, shown, gr.skip()
        host = (request.headers.get("host") or "localhost").rsplit(":", 1)[0]
        return log, True, f'<iframe src="http://{html.escape(host)}:{port}"></iframe>'

    page.load(lambda: gr.Dropdown(choices=commands.runs(folder)), None, model)
    start.click(spoken(served), model, [line, shown, frame])
    end.click(spoken(ended), None, [shown, frame])
    timer.tick(watched, shown, [log, shown, frame], show_progress="hidden")


def _said(label: str, lines: int) -> Any:
    """A field for what was run, or what it said."""
    return gr.Textbox(
        label=label, lines=lines, max_lines=20, interactive=False, elem_classes="said"
    )


def spoken(call: Callable[..., Any]) -> Callable[..., Any]:
    """A refusal of a command as a message on the page."""

    def spoke(*values: Any) -> Any:
        try:
            return call(*values)
        except InputError as error:
            raise gr.Error(str(error), duration=15) from None

    return spoke


def standing(run: Path) -> str:
    """A run in a line."""
    found = look(run)
    parts = [f"**{found.state}**", f"step {found.step:,}"]
    if found.total_steps:
        parts[1] += f" of {found.total_steps:,}"
    if found.loss is not None:
        parts.append(f"loss {found.loss:.3f}")
    if found.tokens_per_second:
        parts.append(f"{found.tokens_per_second:,.0f} tokens/s")
    if found.eta_seconds:
        parts.append(f"{format_duration(found.eta_seconds)} left")
    if found.restarts:
        parts.append(f"{found.restarts} restarts")
    return " · ".join(parts)


def framed(path: Path) -> str:
    """A page that needs nothing else, inside this one."""
    return f'<iframe srcdoc="{html.escape(path.read_text())}"></iframe>'
