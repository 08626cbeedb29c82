"""The page of `launch ui`, with tabs to make data, plan and train, watch runs, and chat."""

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
from launch.slurm.manage import read_status
from launch.slurm.preparations import preparation_line, preparations
from launch.ui import commands
from launch.ui.commands import BackgroundCommands, Form

CHAT, DATA = "chat", "data"
REFRESH_SECONDS = 3
CSS = """
footer {display: none !important}
.frame iframe {width: 100%; height: 70vh; border: 1px solid var(--border-color-primary);
  border-radius: 8px; background: white}
.command-output textarea {font-family: var(--font-mono); font-size: 0.8rem}
.gradio-container {width: 100% !important; max-width: 1100px !important; margin: auto}
"""
PROMPTS = "def main(\nThe module\nimport os"


def build(folder: Path, background: BackgroundCommands, host: str, chat_port: int) -> Any:
    """Returns the page for the runs in a folder."""
    with gr.Blocks(title="Headwater", analytics_enabled=False) as page:
        gr.Markdown("# Headwater\nEach button runs exactly the command that it shows.")
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
                _data_tab(page, folder, background, data)
            with gr.Tab("Train", id="train"):
                _train_tab(page, folder, background, data)
            with gr.Tab("Watch"):
                _watch_tab(page, folder)
            with gr.Tab("Chat"):
                _chat_tab(page, folder, background, host, chat_port)
    return page


def _data_tab(page: Any, folder: Path, background: BackgroundCommands, data: Any) -> None:
    """Adds the tab that tokenizes a corpus; `data` is the dropdown of corpora to train on."""
    with gr.Row():
        corpus = gr.Dropdown(commands.choices("corpus"), value="python_docs", label="text")
        tokenizer = gr.Dropdown(commands.choices("tokenizer"), value="bpe_8k", label="tokenizer")
    more = gr.Textbox(
        "", label="more overrides of the text", placeholder="corpus.sources.text.paths=[notes]"
    )
    make = gr.Button("Tokenize", variant="primary")
    fields: list[Any] = [corpus, tokenizer, more]
    line = _output_box("command", 1)
    progress = gr.Markdown()
    log = _output_box("log", 6)
    timer = gr.Timer(REFRESH_SECONDS)
    path = folder / "tokenize.log"

    def preview(corpus: str, tokenizer: str, more: str) -> str:
        try:
            return commands.shell_form(commands.tokenize(corpus, tokenizer, more))
        except InputError as error:
            return f"# {error}"

    def tokenize(corpus: str, tokenizer: str, more: str) -> str:
        command = commands.tokenize(corpus, tokenizer, more)
        if not background.runs(DATA):
            path.unlink(missing_ok=True)
        background.start(DATA, command, path)
        return commands.shell_form(command)

    def refresh(chosen: str | None) -> tuple[str, str, Any]:
        known = commands.corpora()
        chosen = chosen or (known[0] if known else None)
        lines = map(preparation_line, preparations(commands.DATA_FOLDER))
        return "\n\n".join(lines), commands.tail(path), gr.Dropdown(choices=known, value=chosen)

    page.load(preview, fields, line, show_progress="hidden")
    for item in fields:
        item.change(preview, fields, line, show_progress="hidden")
    make.click(with_error_popup(tokenize), fields, line)
    timer.tick(refresh, data, [progress, log, data], show_progress="hidden")


def _train_tab(page: Any, folder: Path, background: BackgroundCommands, data: Any) -> None:
    with gr.Row():
        name = gr.Textbox("first", label="name of the run")
        model = gr.Dropdown(commands.choices("model"), value="demo_12m", label="model")
        recipe = gr.Dropdown(commands.choices("recipe"), value="demo", label="recipe")
    with gr.Row():
        data.render()
        optim = gr.Dropdown(commands.choices("optim"), value="adamw_demo", label="optimizer")
        processes = gr.Number(1, label="processes on this machine", minimum=1, precision=0)
        cluster = gr.Dropdown(commands.choices("cluster"), value="laptop", label="cluster to plan")
    more = gr.Textbox("", label="more overrides", placeholder="seed=1 parallel=fsdp", lines=1)
    fields: list[Any] = [name, model, recipe, optim, data, processes, cluster, more]
    line = _output_box("command", 3)
    with gr.Row():
        plan_button = gr.Button("Plan")
        train_button = gr.Button("Train", variant="primary")
    message = gr.Markdown()
    frame = gr.HTML(elem_classes="frame")

    def form(*values: Any) -> Form:
        name, model, recipe, optim, data, processes, cluster, more = values
        return Form(
            name, model, recipe, optim, data or "", int(processes), cluster, folder, more or ""
        )

    def plan(*values: Any) -> tuple[str, str, str]:
        chosen = form(*values)
        commands.run_now(chosen.plan())
        return commands.shell_form(chosen.plan()), "", as_iframe(chosen.plan_page)

    def train(*values: Any) -> tuple[str, str, str]:
        chosen = form(*values)
        line = commands.train(background, chosen)
        return line, f"**{chosen.run_dir}** is training. See *Watch*.", ""

    def preview(*values: Any) -> str:
        try:
            return commands.shell_form(form(*values).train())
        except InputError as error:
            return f"# {error}"

    page.load(preview, fields, line, show_progress="hidden")
    for item in fields:
        item.change(preview, fields, line, show_progress="hidden")
    plan_button.click(with_error_popup(plan), fields, [line, message, frame])
    train_button.click(with_error_popup(train), fields, [line, message, frame])


def _watch_tab(page: Any, folder: Path) -> None:
    with gr.Row():
        run = gr.Dropdown([], label="run", allow_custom_value=True, scale=3)
        stop_button = gr.Button("Stop", variant="stop")
        report_button = gr.Button("Report")
    state = gr.Markdown("No run yet.")
    loss = gr.LinePlot(
        x="step",
        y="loss",
        color="series",
        title="loss, nats per token",
        height=280,
        visible=False,
    )
    log = _output_box("log", 6)
    with gr.Row():
        prompts = gr.Textbox(PROMPTS, label="prompts, one per line", lines=3)
        with gr.Column():
            tokens = gr.Slider(16, 256, 48, step=16, label="tokens to generate")
            generate_button = gr.Button("Generate samples with the newest checkpoint")
    line = _output_box("command", 1)
    text = _output_box("samples", 3)
    frame = gr.HTML(elem_classes="frame")
    timer = gr.Timer(REFRESH_SECONDS)

    def refresh(chosen: str | None) -> tuple[Any, ...]:
        known = commands.runs(folder)
        chosen = chosen or (known[0] if known else None)
        if not chosen:
            nothing = gr.skip()
            return gr.Dropdown(choices=known), "No run yet.", nothing, nothing
        found, log = commands.loss_curves(Path(chosen)), commands.tail(Path(chosen) / "ui.log")
        return (
            gr.Dropdown(choices=known, value=chosen),
            status_line(Path(chosen)),
            gr.LinePlot(pandas.DataFrame(found), visible=bool(found["step"])),
            gr.Textbox(log, visible=bool(log)),
        )

    def stop(chosen: str) -> str:
        commands.run_now(commands.stop(chosen))
        return commands.shell_form(commands.stop(chosen))

    def generate(chosen: str, prompts: str, tokens: float) -> tuple[str, str]:
        path = Path(chosen) / "prompts.txt"
        write_text(path, "\n".join(filter(None, prompts.splitlines())) + "\n")
        command = commands.samples(chosen, path, int(tokens))
        return commands.shell_form(command), commands.run_now(command)

    def report(chosen: str) -> tuple[str, str]:
        command = commands.report(chosen)
        commands.run_now(command)
        return commands.shell_form(command), as_iframe(Path(chosen) / "report.html")

    for event in (page.load, timer.tick, run.change):
        event(refresh, run, [run, state, loss, log], show_progress="hidden")
    stop_button.click(with_error_popup(stop), run, line)
    report_button.click(with_error_popup(report), run, [line, frame])
    generate_button.click(with_error_popup(generate), [run, prompts, tokens], [line, text])


def _chat_tab(
    page: Any, folder: Path, background: BackgroundCommands, host: str, port: int
) -> None:
    with gr.Row():
        model = gr.Dropdown(
            [],
            label="run, checkpoint, exported folder or name on the Hub",
            allow_custom_value=True,
            scale=3,
        )
        serve_button = gr.Button("Serve", variant="primary")
        end_button = gr.Button("Stop serving", variant="stop")
    line = _output_box("command", 1)
    log = _output_box("log", 3)
    frame = gr.HTML(elem_classes="frame")
    timer = gr.Timer(REFRESH_SECONDS)
    shown = gr.State(False)
    path = folder / "chat.log"

    def serve(chosen: str | None) -> tuple[str, bool, str]:
        if not chosen:
            raise InputError("Choose a model to serve.")
        background.end(CHAT)
        path.unlink(missing_ok=True)
        command = commands.chat(chosen, host, port)
        background.start(CHAT, command, path)
        return commands.shell_form(command), False, ""

    def end() -> tuple[bool, str]:
        background.end(CHAT)
        return False, ""

    def refresh(shown: bool, request: gr.Request) -> tuple[str, bool, Any]:
        """Shows the page of the chat in a frame as soon as it is served."""
        log = commands.tail(path) if background.runs(CHAT) else ""
        if shown or "\npage: " not in log:
            return log, shown, gr.skip()
        host = (request.headers.get("host") or "localhost").rsplit(":", 1)[0]
        return log, True, f'<iframe src="http://{html.escape(host)}:{port}"></iframe>'

    page.load(lambda: gr.Dropdown(choices=commands.runs(folder)), None, model)
    serve_button.click(with_error_popup(serve), model, [line, shown, frame])
    end_button.click(with_error_popup(end), None, [shown, frame])
    timer.tick(refresh, shown, [log, shown, frame], show_progress="hidden")


def _output_box(label: str, lines: int) -> Any:
    """Returns a read-only field for a command or its output."""
    return gr.Textbox(
        label=label, lines=lines, max_lines=20, interactive=False, elem_classes="command-output"
    )


def with_error_popup(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that makes the same call but shows an InputError on the page."""

    def wrapped(*values: Any) -> Any:
        try:
            return call(*values)
        except InputError as error:
            raise gr.Error(str(error), duration=15) from None

    return wrapped


def status_line(run: Path) -> str:
    """Returns the status of a run in one line."""
    found = read_status(run)
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


def as_iframe(path: Path) -> str:
    """Returns a self-contained page embedded in an iframe."""
    return f'<iframe srcdoc="{html.escape(path.read_text())}"></iframe>'
