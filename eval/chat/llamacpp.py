"""llama.cpp as a server of GGUF files: the program llama-server, or the package xllamacpp."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from conf.errors import InputError, RunAborted

PROGRAM = "llama-server"
PACKAGE = "xllamacpp"
KEY_VARIABLE = "LLAMA_API_KEY"
"""Environment variable from which the server reads the key of its clients."""
START_SECONDS = 600
EXACT = [
    *("--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"),
    *("--swa-full", "--n-gpu-layers", "0"),
]
"""Settings for float32 on the CPU; the others change log-probabilities by up to 0.01."""
CHOSEN = 1e4
"""Bias of the logit of a token that is to be chosen; log-probabilities are computed without it."""
Message = dict[str, str]


def is_gguf(model: str | Path) -> bool:
    """Returns whether a model is a GGUF file rather than a folder."""
    return Path(model).suffix == ".gguf"


def find_file(model: str | Path, key: str = "model") -> Path:
    """Returns the path of a GGUF file; raises InputError if it is none."""
    path = Path(model)
    if not is_gguf(path):
        raise InputError(
            f"{key}={model}: llama.cpp reads GGUF files. Write one with python -m model gguf "
            f"model={model} out=model.gguf"
        )
    if not path.is_file():
        raise InputError(f"{key}={model}: the file does not exist. Give the path of a GGUF file.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{key}={model}: this is not a GGUF file. Write or copy it again.")
    return path


def check_llamacpp(key: str = "engine=llamacpp") -> None:
    """Raises InputError if neither form of llama.cpp is installed."""
    from importlib.util import find_spec

    if shutil.which(PROGRAM) is None and find_spec(PACKAGE) is None:
        raise InputError(
            f"{key}: neither the program {PROGRAM} nor the package {PACKAGE} is installed. Run pip "
            'install -c constraints.txt -e ".[gguf]", or install llama.cpp.'
        )


def server_command(file: Path, *more: str) -> list[str]:
    """Returns the command line of llama.cpp's server.

    more: further arguments of llama-server, of which `eval.chat.llamacpp_server` knows some.
    """
    program = [PROGRAM, "--jinja"]
    if shutil.which(PROGRAM) is None:
        program = [sys.executable, "-m", "eval.chat.llamacpp_server"]
    return [*program, "--model", str(file), *more]


class LlamaCpp:
    """A GGUF file in llama.cpp's server on this machine, from `with` to the end of its block."""

    def __init__(self, file: Path, *more: str) -> None:
        """Starts the server and waits until it has loaded the file.

        Args:
            file: The GGUF file.
            more: Further arguments of llama-server, such as those of EXACT.

        Raises:
            InputError: llama.cpp is not installed.
            RunAborted: It does not load the file.
        """
        check_llamacpp(f"model={file}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        address = ("--host", "127.0.0.1", "--port", str(port))
        command = server_command(file, *address, "--parallel", "1", *more)
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait(file)
        except BaseException:
            self.close()
            raise

    def _wait(self, file: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                self.ask("/health")
            except (URLError, OSError, RunAborted):
                time.sleep(0.05)
            else:
                return
        raise RunAborted(f"model={file}: llama.cpp does not load the file.", 1)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Returns the server's answer to a request, a GET without a body."""
        with self._open(path, body) as answer:
            return json.load(answer)

    def _open(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            return urlopen(Request(self._address + path, data, headers))
        except HTTPError as error:
            text = error.read().decode(errors="replace")
            raise RunAborted(f"llama.cpp answers {path} with {error.code} ({text}).", 1) from None

    def answer(self, messages: Sequence[Message], **settings: Any) -> Iterator[str]:
        """Yields the answer to a conversation in pieces as it is generated.

        settings: of a request in OpenAI's format, such as `temperature`.
        """
        body = {"messages": list(messages), "stream": True, **settings}
        with self._open("/v1/chat/completions", body) as lines:
            for line in lines:
                text = line.decode().removeprefix("data:").strip()
                if not text or text == "[DONE]":
                    continue
                event = json.loads(text)
                if "error" in event:
                    raise RunAborted(f"llama.cpp: {event['error'].get('message')}.", 1)
                for choice in event.get("choices", []):
                    yield choice["delta"].get("content") or ""

    def has_template(self) -> bool:
        """Returns whether the file has a chat template."""
        return bool(self.ask("/props").get("chat_template"))

    def context_length(self) -> int:
        """Returns the number of tokens of a prompt and its answer together."""
        return int(self.ask("/props")["default_generation_settings"]["n_ctx"])

    def tokenize(self, text: str, *, with_ends: bool = False) -> list[int]:
        """Returns the ids of a text; with_ends: with the BOS and EOS tokens that texts get."""
        body = {"content": text, "add_special": with_ends, "parse_special": True}
        return list(self.ask("/tokenize", body)["tokens"])

    def rendered(self, messages: Sequence[Message]) -> str:
        """Returns a conversation as the chat template writes it, up to the next answer."""
        return str(self.ask("/apply-template", {"messages": list(messages)})["prompt"])

    def greedy(
        self,
        ids: Sequence[int],
        tokens: int,
        *,
        ignore_eos: bool = True,
        forbidden: Sequence[int] = (),
    ) -> list[int]:
        """Returns the likeliest continuation of a prompt, of at most `tokens` tokens.

        Args:
            ids: The prompt.
            tokens: Number of tokens, fewer at the end of the context.
            ignore_eos: Whether tokens that end a text are not chosen.
            forbidden: Ids that are not chosen either.
        """
        never = [[number, False] for number in forbidden]
        more = {"n_predict": tokens, "ignore_eos": ignore_eos, "logit_bias": never}
        answer = self.ask("/completion", _greedy_body(ids) | more | {"return_tokens": True})
        return list(answer["tokens"])

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Returns the log-probability of each token after those before it, without the first."""
        return [self._log_probability(ids[:end], ids[end]) for end in range(1, len(ids))]

    def _log_probability(self, prompt: Sequence[int], token: int) -> float:
        """Returns the log-probability of a token after a prompt.

        The server states that of the token that it chooses, unless the token ends the text or is
        the beginning of a character. It then lists all tokens next to another chosen one.
        """
        chosen = self._choose(prompt, token, 1)
        if chosen is not None:
            return float(chosen["logprob"])
        size = int(self.ask("/v1/models")["data"][0]["meta"]["n_vocab"])
        for other in self.tokenize("a b c"):
            if chosen := self._choose(prompt, other, size):
                listed = {entry["id"]: entry["logprob"] for entry in chosen["top_logprobs"]}
                return float(listed[token])
        raise RunAborted("llama.cpp states no log-probabilities after this prompt.", 1)

    def _choose(self, prompt: Sequence[int], token: int, n_probs: int) -> dict[str, Any] | None:
        """Returns the entry of a token that is chosen after a prompt, None if there is none."""
        bias = {"n_predict": 1, "n_probs": n_probs, "logit_bias": [[token, CHOSEN]]}
        answer = self.ask("/completion", _greedy_body(prompt) | bias)
        entries = answer.get("completion_probabilities")
        return entries[0] if entries and entries[0]["id"] == token else None


def _greedy_body(ids: Sequence[int]) -> dict[str, Any]:
    return {
        "prompt": list(ids),
        "temperature": 0,
        "top_k": 1,
        "repeat_penalty": 1,
        "cache_prompt": True,
    }
