"""`python -m eval serve`: an OpenAI-compatible endpoint and a web page to chat with it.

The endpoint is that of `transformers serve`, with checks of the requests (`eval.chat.endpoint`),
or of vLLM, run as a process of its own on the model's folder. The page is a client of it like any
other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from omegaconf import MISSING

from conf.errors import InputError, RunAborted, one_of
from eval.chat.requests import TOO_LONG
from eval.devices import DTYPES, resolve_device, resolve_dtype
from eval.find_model import find_model

ENGINES = ("transformers", "vllm")
PACKAGES = ("gradio", "openai", "fastapi", "uvicorn")
PAGE_CSS = "footer {display: none !important}"


@dataclass
class ServeConfig:
    """model: a folder, a run, one of its checkpoints, or a name on the Hub.

    host: the address that both listen on; port: of the page; api_port: of the endpoint.
    page: false for the endpoint alone; share: a public link to the page, made by gradio.
    engine: transformers, or vllm where it is installed.
    dtype: auto for the stored type where the device multiplies it, else float32.
    start_seconds: how long the endpoint may take to load the model.
    """

    model: str = MISSING
    host: str = "0.0.0.0"
    port: int = 7860
    api_port: int = 8000
    page: bool = True
    share: bool = False
    engine: str = "transformers"
    dtype: str = "auto"
    device: str = "auto"
    start_seconds: int = 600

    def __post_init__(self) -> None:
        one_of("engine", self.engine, ENGINES)
        one_of("dtype", self.dtype, DTYPES)
        for key in ("port", "api_port"):
            if not 0 < getattr(self, key) < 65536:
                raise InputError(f"{key}={getattr(self, key)}, expected 1 to 65535.")
        if self.port == self.api_port and self.page:
            raise InputError(f"port and api_port are both {self.port}: choose another for one.")


def serve(config: ServeConfig) -> None:
    """Serves until it is interrupted.

    Raises:
        InputError: there is no such model, it has no chat template for the page, a package is
            missing or a port is taken.
        RunAborted: the endpoint ended or did not come up.
    """
    check_packages(config)
    folder = find_model(config.model)
    if config.page:
        check_template(config.model, folder)
    for key in ("port", "api_port") if config.page else ("api_port",):
        check_free(key, getattr(config, key))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the endpoint ends with us
    with endpoint(config, folder) as process:
        here = f"http://localhost:{config.api_port}/v1"
        print(f"endpoint: {here}, model {folder}", flush=True)
        if config.page:
            made = chat_page(folder, here)
            made.launch(
                server_name=config.host,
                server_port=config.port,
                share=config.share,
                prevent_thread_lock=True,
                quiet=True,
                css=PAGE_CSS,
            )
            print(f"page: http://localhost:{config.port}", flush=True)
            if made.share_url:
                print(f"public: {made.share_url}", flush=True)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            return
    raise RunAborted(f"the endpoint ended with code {code}; its own words are above.", 1)


def check_packages(config: ServeConfig) -> None:
    """Raises InputError where something that is needed is not installed."""
    import importlib.util

    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"serve needs {', '.join(missing)}, which is not installed: "
            'pip install -c constraints.txt -e ".[chat]"'
        )
    if config.engine == "vllm" and shutil.which("vllm") is None:
        raise InputError(
            "engine=vllm: the command vllm is not installed; install it, or use "
            "engine=transformers."
        )


def check_template(model: str, folder: Path) -> None:
    """Raises InputError where a model's folder does not say how a conversation is written."""
    if (folder / "chat_template.jinja").is_file():
        return
    config = folder / "tokenizer_config.json"  # where it stands in older folders
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("chat_template"):
        return
    raise InputError(
        f"model={model} has no chat template, so that the page could not talk to it: "
        "tune it first (python -m finetune sft), or give page=false."
    )


def check_free(key: str, port: int) -> None:
    """Raises InputError where something listens on a port already."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            raise InputError(f"{key}={port} is in use on this machine: choose another.") from None


def command_of(config: ServeConfig, folder: Path, dtype: str) -> list[str]:
    """Returns the command line that starts the endpoint, which computes in `dtype`."""
    where = ["--host", config.host, "--port", str(config.api_port)]
    if config.engine == "vllm":
        return ["vllm", "serve", str(folder), "--dtype", dtype, *where]
    python = [sys.executable, "-m", "eval.chat.endpoint", "serve", str(folder)]
    return [*python, "--dtype", dtype, "--device", resolve_device(config.device), *where]


@contextmanager
def endpoint(config: ServeConfig, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The endpoint's process, once it answers; it is ended with the block."""
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", **os.environ}
    dtype = resolve_dtype(config.dtype, folder, resolve_device(config.device))
    process = subprocess.Popen(command_of(config, folder, dtype), env=environment)
    try:
        deadline = time.monotonic() + config.start_seconds
        while not answers(f"http://localhost:{config.api_port}/health"):
            if process.poll() is not None:
                raise RunAborted(
                    f"model={config.model}: the endpoint ended with code {process.returncode} "
                    "while it started; its own words are above.",
                    1,
                )
            if time.monotonic() > deadline:
                raise RunAborted(
                    f"the endpoint did not answer within start_seconds={config.start_seconds}.", 1
                )
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(address: str) -> bool:
    """Whether there is a 200 there."""
    try:
        with urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def chat_page(folder: Path, endpoint: str) -> Any:
    """The page: a conversation, and what an answer is drawn with."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio

    return gradio.ChatInterface(
        respond_with(str(folder), endpoint),
        title=f"{folder.name} · Headwater",
        additional_inputs=[
            gradio.Textbox("", label="system prompt"),
            gradio.Slider(0, 2, 0.7, step=0.1, label="temperature"),
            gradio.Slider(0, 1, 0.1, step=0.1, label="frequency penalty"),
            gradio.Slider(16, 2048, 256, step=16, label="longest answer, in tokens"),
        ],
        additional_inputs_accordion=gradio.Accordion("settings", open=False),
        api_name="chat",
        analytics_enabled=False,
    )


def respond_with(model: str, endpoint: str) -> Callable[..., Iterator[str]]:
    """What the page asks for an answer: it yields the answer so far."""
    from openai import APIError, OpenAI

    client = OpenAI(base_url=endpoint, api_key="none")

    def respond(
        message: str,
        history: list[Any],
        system: str,
        temperature: float,
        penalty: float,
        tokens: float,
    ) -> Iterator[str]:
        import gradio

        first: list[Any] = [{"role": "system", "content": system}] if system else []
        turns: list[Any] = [{"role": turn["role"], "content": text_of(turn)} for turn in history]
        turns.append({"role": "user", "content": message})
        said, answered = "", False
        while not answered:
            try:
                for chunk in client.chat.completions.create(
                    model=model,
                    messages=first + turns,
                    temperature=temperature,
                    frequency_penalty=penalty,
                    max_tokens=int(tokens),
                    stream=True,
                ):
                    if chunk.choices:
                        said += chunk.choices[0].delta.content or ""
                        yield said
                answered = True
            except APIError as error:
                if error.code == TOO_LONG and len(turns) > 2:
                    turns = turns[2:]  # the oldest question and its answer are forgotten
                    continue
                told = error.body.get("message") if isinstance(error.body, dict) else error.message
                raise gradio.Error(f"the endpoint refused: {told}") from None
        if not said.strip():
            yield "(no text)"

    return respond


def text_of(turn: dict[str, Any]) -> str:
    """The text of a message of gradio's history, whose content is text or a list of parts."""
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
