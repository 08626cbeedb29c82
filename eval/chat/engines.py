"""The servers that `eval serve` can start, each with its command line and its environment.

A further engine is one more entry of ENGINES.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from conf.errors import InputError
from eval.chat.llamacpp import KEY_VARIABLE as LLAMACPP_KEY
from eval.chat.llamacpp import check_llamacpp, server_command
from eval.devices import resolve_device

KEY_VARIABLE = "SERVE_API_KEY"
"""Environment variable with the key that clients of our endpoint must send."""


class Settings(Protocol):
    """The settings of `eval serve` that an engine reads."""

    host: str
    api_port: int
    engine: str
    engine_args: list[str]
    api_key: str | None
    device: str


@dataclass(frozen=True)
class Engine:
    """A server of OpenAI's protocol.

    Attributes:
        command: Returns the command line without address, from the config, the model's folder and
            the dtype that it computes in.
        key_variable: Environment variable from which the server reads the key of its clients. On
            the command line, every user of the machine could read the key.
        program: Program that must be installed, None if Headwater has it.
        environment: Further environment variables.
        owned: Options that other settings determine, each with its setting.
        reads_gguf: Whether it serves a GGUF file instead of a folder.
    """

    command: Callable[[Settings, Path, str], list[str]]
    key_variable: str
    program: str | None = None
    environment: Mapping[str, str] | None = None
    owned: Mapping[str, str] | None = None
    reads_gguf: bool = False

    def check(self, name: str) -> None:
        """Raises InputError if the program is not installed."""
        if self.program is not None and shutil.which(self.program) is None:
            raise InputError(
                f"engine={name}: the command {self.program} is not installed. Install it, or use "
                "engine=transformers."
            )

    def check_arguments(self, arguments: list[str]) -> None:
        """Raises InputError if `engine_args` has an option that another setting determines."""
        for option, setting in {**OWNED, **(self.owned or {})}.items():
            for argument in arguments:
                if argument.partition("=")[0] == option:
                    raise InputError(f"engine_args: {option} is set by {setting}. Use {setting}.")


OWNED = {"--host": "host=", "--port": "api_port=", "--dtype": "dtype=", "--api-key": "api_key="}


def _transformers(config: Settings, folder: Path, dtype: str) -> list[str]:
    python = [sys.executable, "-m", "eval.chat.endpoint", "serve", str(folder)]
    return [*python, "--dtype", dtype, "--device", resolve_device(config.device)]


def _vllm(config: Settings, folder: Path, dtype: str) -> list[str]:
    return ["vllm", "serve", str(folder), "--dtype", dtype]


def _llamacpp(config: Settings, folder: Path, dtype: str) -> list[str]:
    check_llamacpp()
    return [*server_command(folder), "--alias", str(folder)]


ENGINES = {
    "transformers": Engine(_transformers, KEY_VARIABLE, owned={"--device": "device="}),
    # Between its own processes, vLLM listens on the machine's address in the network by default.
    "vllm": Engine(_vllm, "VLLM_API_KEY", "vllm", {"VLLM_HOST_IP": "127.0.0.1"}),
    "llamacpp": Engine(
        _llamacpp, LLAMACPP_KEY, owned={"--model": "model=", "--alias": "model="}, reads_gguf=True
    ),
}


def endpoint_command(config: Settings, folder: Path, dtype: str) -> list[str]:
    """Returns the command line that starts the endpoint.

    dtype: the dtype that the model computes in.
    """
    address = ["--host", config.host, "--port", str(config.api_port)]
    return [*ENGINES[config.engine].command(config, folder, dtype), *address, *config.engine_args]


def endpoint_environment(config: Settings) -> dict[str, str]:
    """Returns the environment of the endpoint: its own, what the user has set, and the key."""
    engine = ENGINES[config.engine]
    own = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", **(engine.environment or {})}
    key = {engine.key_variable: config.api_key} if config.api_key else {}
    return {**own, **os.environ, **key}
