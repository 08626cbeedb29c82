"""A model that every engine has kernels for, and vLLM serving it through `eval serve`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.corpora import byte_tokenizer
from tests.eval.conftest import CHAT_TEMPLATE, named_corpus, tasks  # noqa: F401 (fixtures)
from tests.ports import free_port

WINDOW, KEY = 24, "secret"
VLLM = os.environ.get("SERVING_BIN", "")
"""Folder of the command vllm, set by `make test-serving`."""
if shutil.which("vllm", path=VLLM or os.devnull) is None:
    collect_ignore_glob = ["test_*.py"]


@dataclass
class Served:
    """A running `eval serve`.

    Attributes:
        process: The process.
        log: What it and its engine print.
        page: Port of the page.
        api: Port of the endpoint.
    """

    process: subprocess.Popen[str]
    log: Path
    page: int
    api: int

    @property
    def endpoint(self) -> str:
        """Address of the endpoint."""
        return f"http://127.0.0.1:{self.api}/v1"

    def processes(self) -> list[psutil.Process]:
        """Returns the process and all processes below it."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]


@pytest.fixture(scope="session")
def windowed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral with a window of 24 and a chat template."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "windowed"
    config = MistralConfig(
        vocab_size=320, hidden_size=128, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, sliding_window=WINDOW,
        max_position_embeddings=512, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def start(model: Path, folder: Path, *settings: str) -> Served:
    """Starts `eval serve engine=vllm` in the background."""
    page, api = free_port(), free_port()
    command = [sys.executable, "-m", "eval", "serve", "engine=vllm", f"model={model}"]
    command += ["dtype=float32", f"port={page}", f"api_port={api}", f"api_key={KEY}"]
    command += ["start_seconds=1500", "engine_args=[--enforce-eager]", *settings]
    environment = os.environ | {
        "PATH": f"{os.environ['PATH']}:{VLLM}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, text=True
        )
    return Served(process, log, page, api)


@pytest.fixture(scope="session")
def vllm(windowed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """VLLM with its page, once it serves; nothing of it is left afterwards."""
    served = start(windowed_model, tmp_path_factory.mktemp("vllm"))
    try:
        wait_for_line(served, "\npage: ")
        yield served
    finally:
        below = served.processes()
        served.process.terminate()
        code = served.process.wait(60)
    _, left = psutil.wait_procs(below, timeout=0)
    assert (code, left) == (0, []), served.log.read_text()


def wait_for_line(served: Served, text: str) -> None:
    """Waits until a text is printed, as long as the process runs."""
    while text not in served.log.read_text(errors="replace"):
        try:
            code = served.process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"ended with {code}:\n{served.log.read_text()[-5000:]}")
