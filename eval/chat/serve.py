"""`python -m eval serve`: serves an OpenAI-compatible endpoint and a web page to chat with it.

The endpoint is a separate process, one of `eval.chat.engines`: `transformers serve` with request
validation (`eval.chat.endpoint`), or vLLM. It ends with this process, however that ends
(`eval.chat.guard`). The page is an ordinary client of the endpoint.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from omegaconf import MISSING

from conf.errors import InputError, RunAborted, one_of
from conf.gradio_page import check_installed, check_port, import_gradio, launch_page, local_address
from eval.chat.engines import ENGINES, endpoint_command, endpoint_environment
from eval.chat.llamacpp import find_file
from eval.chat.requests import TOO_LONG
from eval.devices import DTYPES, resolve_device, resolve_dtype
from eval.find_model import find_model

PACKAGES = ("gradio", "openai", "fastapi", "uvicorn")
PAGE_CSS = "footer {display: none !important}"


@dataclass
class ServeConfig:
    """Configuration of `serve`.

    model: a folder, a run, a checkpoint of a run, or a name on the Hub.
    host: the address that the page and the endpoint listen on; 0.0.0.0 for all addresses of this
        machine, so that others can use them.
    port: port of the page.
    api_port: port of the endpoint.
    page: false to serve the endpoint only.
    share: creates a public link to the page through gradio.
    engine: transformers; vllm or, for a GGUF file, llamacpp, if they are installed.
    engine_args: further arguments of the engine's command, such as [--max-model-len=4096].
    api_key: key that clients of the endpoint must send, and password of the page; null for none.
    dtype: dtype to compute in; auto for the stored one if the device supports it, else float32.
    start_seconds: time limit, in seconds, for the endpoint to start and load the model.
    """

    model: str = MISSING
    host: str = "127.0.0.1"
    port: int = 7860
    api_port: int = 8000
    page: bool = True
    share: bool = False
    engine: str = "transformers"
    engine_args: list[str] = field(default_factory=list)
    api_key: str | None = field(default=None, repr=False)
    dtype: str = "auto"
    device: str = "auto"
    start_seconds: int = 600

    def __post_init__(self) -> None:
        one_of("engine", self.engine, tuple(ENGINES))
        ENGINES[self.engine].check_arguments(self.engine_args)
        one_of("dtype", self.dtype, DTYPES)
        for key in ("port", "api_port"):
            if not 0 < getattr(self, key) < 65536:
                raise InputError(f"{key}={getattr(self, key)}: expected 1 to 65535.")
        if self.port == self.api_port and self.page:
            raise InputError(
                f"port={self.port}: api_port has the same value. Choose different ports."
            )
        if self.api_key == "":
            raise InputError("api_key: expected text that is not empty. Remove it for no key.")

    @property
    def address(self) -> str:
        """The address under which this machine reaches the endpoint, without a path."""
        return local_address(self.host, self.api_port)


def serve(config: ServeConfig) -> None:
    """Serves the endpoint and the page until interrupted.

    Raises:
        InputError: the model or its chat template is missing, a package is not installed, or a port
            is in use.
        RunAborted: the endpoint exited or did not start.
    """
    check_installed("serve", PACKAGES)
    ENGINES[config.engine].check(config.engine)
    reads_gguf = ENGINES[config.engine].reads_gguf
    folder = find_file(config.model) if reads_gguf else find_model(config.model)
    if config.page and not reads_gguf:
        check_chat_template(config.model, folder)
    for key in ("port", "api_port") if config.page else ("api_port",):
        check_port(key, getattr(config, key), config.host)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the endpoint is stopped
    try:
        with endpoint(config, folder) as process:
            url = f"{config.address}/v1"
            print(f"endpoint: {url}, model {folder}", flush=True)
            if config.page:
                page = chat_page(folder, url, config.api_key)
                launch_page(page, config.host, config.port, config.share, PAGE_CSS, config.api_key)
            code = process.wait()
    except KeyboardInterrupt:
        return
    raise RunAborted(f"the endpoint exited with code {code}; its output is above.", 1)


def check_chat_template(model: str, folder: Path) -> None:
    """Raises InputError if a model's folder has no chat template."""
    if (folder / "chat_template.jinja").is_file():
        return
    config = folder / "tokenizer_config.json"  # older folders keep it there
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("chat_template"):
        return
    raise InputError(
        f"model={model}: the model has no chat template, which the page needs. Tune the model "
        "first (python -m finetune sft), or use page=false."
    )


@contextmanager
def endpoint(config: ServeConfig, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the endpoint, yields its process when it is ready, and stops it on exit."""
    dtype = resolve_dtype(config.dtype, folder, resolve_device(config.device))
    command = [sys.executable, "-m", "eval.chat.guard", *endpoint_command(config, folder, dtype)]
    environment = endpoint_environment(config)
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + config.start_seconds
        while not responds(f"{config.address}/health"):
            if process.poll() is not None:
                raise RunAborted(
                    f"model={config.model}: the endpoint exited with code {process.returncode} "
                    "while starting; its output is above.",
                    1,
                )
            if time.monotonic() > deadline:
                raise RunAborted(
                    f"start_seconds={config.start_seconds}: the endpoint did not start in time. "
                    "Raise start_seconds.",
                    1,
                )
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait()  # the guard ends with the last process of the engine


def responds(url: str) -> bool:
    """Returns True if a URL responds with status 200."""
    try:
        with urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def chat_page(folder: Path, endpoint: str, api_key: str | None = None) -> Any:
    """Returns the chat page with its sampling settings."""
    gradio = import_gradio()
    return gradio.ChatInterface(
        make_responder(str(folder), endpoint, api_key),
        title=f"{folder.name} · Headwater",
        additional_inputs=[
            gradio.Textbox("", label="system prompt"),
            gradio.Slider(0, 2, 0.7, step=0.1, label="temperature"),
            gradio.Slider(0, 1, 0.1, step=0.1, label="frequency penalty"),
            gradio.Slider(16, 2048, 256, step=16, label="maximum answer length in tokens"),
        ],
        additional_inputs_accordion=gradio.Accordion("settings", open=False),
        api_name="chat",
        analytics_enabled=False,
    )


def make_responder(
    model: str, endpoint: str, api_key: str | None = None
) -> Callable[..., Iterator[str]]:
    """Returns the function that streams an answer to the page by yielding the text so far."""
    from openai import APIError, OpenAI

    client = OpenAI(base_url=endpoint, api_key=api_key or "none")

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
        turns: list[Any] = [{"role": turn["role"], "content": turn_text(turn)} for turn in history]
        turns.append({"role": "user", "content": message})
        answer, is_complete = "", False
        while not is_complete:
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
                        answer += chunk.choices[0].delta.content or ""
                        yield answer
                is_complete = True
            except APIError as error:
                if error.code == TOO_LONG and len(turns) > 2:
                    turns = turns[2:]  # drop the oldest question and its answer
                    continue
                body = error.body
                reason = body.get("message") if isinstance(body, dict) else error.message
                raise gradio.Error(f"the endpoint returned an error: {reason}") from None
        if not answer.strip():
            yield "(no text)"

    return respond


def turn_text(turn: dict[str, Any]) -> str:
    """Returns the text of a message in gradio's history; its content is text or a list of parts."""
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
