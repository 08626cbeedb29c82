"""`eval serve engine=llamacpp` answers as `transformers` does, and leaves no process behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
import torch

from tests.conftest import ROOT
from tests.ports import free_port

KEY, CHAT = "secret", [{"role": "user", "content": "Hi"}]


def ask(port: int, key: str) -> str:
    """Returns the answer of the endpoint to a conversation."""
    body = {"messages": CHAT, "temperature": 0, "max_tokens": 4, "logit_bias": {"2": -100}}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    address = f"http://127.0.0.1:{port}/v1/chat/completions"
    with urlopen(Request(address, json.dumps(body).encode(), headers)) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def test_a_gguf_file_is_served(chat_model, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed (extra gguf)")
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed (extra gguf)")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from model.gguf.command import GGUFConfig, gguf

    file, port = tmp_path / "model.gguf", free_port()
    gguf(GGUFConfig(model=str(chat_model), out=str(file), type="f32"))
    command = [sys.executable, "-m", "eval", "serve", "engine=llamacpp", f"model={file}"]
    command += ["page=false", f"api_port={port}", f"api_key={KEY}"]
    # The package, even where the program is installed.
    environment = os.environ | {"PATH": os.defpath, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("endpoint: ") for line in lines)
        below = psutil.Process(process.pid).children(recursive=True)
        said = ask(port, KEY)
        with pytest.raises(HTTPError, match="401"):
            ask(port, "wrong")
    finally:
        process.terminate()
        process.wait()
    _, left = psutil.wait_procs(below, timeout=0)
    assert (process.returncode, left) == (0, [])
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    model: Any = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    made = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=4, bad_words_ids=[[2]]
    )
    assert said == tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
