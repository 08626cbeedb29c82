"""A tiny exported model and real pairs: functions of the standard library and their docstrings."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.chat import ChatTemplate
from conf.entry import CONF_DIR
from finetune.config import SftConfig
from finetune.tokens import add_template_tokens

TEMPLATES = sorted(path.stem for path in (CONF_DIR / "chat_template").glob("*.yaml"))


def load_template(name: str) -> ChatTemplate:
    """A choice of the group `chat_template`."""
    return ChatTemplate(**yaml.safe_load((CONF_DIR / "chat_template" / f"{name}.yaml").read_text()))


def prepared(tokenizer: Any, name: str) -> tuple[Any, ChatTemplate]:
    """A copy of the tokenizer with what the template needs, and the template."""
    template, copied = load_template(name), copy.deepcopy(tokenizer)
    add_template_tokens(copied, template)
    return copied, template


@pytest.fixture(scope="session")
def tokenizer():
    """A trained byte-level BPE that melts `|>` with a quotation mark into one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = inspect.getsource(textwrap) + '<|prompt|>a<|answer|>"b"' * 50
    trained.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def base(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral with a window, stored in bf16."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "base"
    config = MistralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=32,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    MistralForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 lines of prompt and completion."""
    functions = [
        node
        for module in (textwrap, ast, inspect, json)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
    ]
    lines = []
    for function in functions[:40]:
        docstring = (ast.get_docstring(function) or "").split("\n")[0]
        prompt = f"What does {function.name}({ast.unparse(function.args)}) do?"
        lines.append(json.dumps({"prompt": prompt[:120], "completion": docstring}))
    assert len(lines) == 40
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def preferences(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A docstring against the same in capitals: a model of 32 dimensions can tell them apart."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    lines = [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": row["completion"].upper(),
        }
        for row in rows
    ]
    path = tmp_path_factory.mktemp("preferences") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture
def settings(base: Path, pairs: Path, tmp_path: Path) -> Callable[..., SftConfig]:
    """Makes a config of the tiny model, with overrides."""

    def make(**overrides: object) -> SftConfig:
        values = {
            "model": str(base),
            "data": str(pairs),
            "out": str(tmp_path / "chat"),
            "chat_template": load_template("danube"),
            "precision": "fp32",
            "device": "cpu",
            "learning_rate": 1e-2,
            "log_every": 1,
        }
        return SftConfig(**(values | overrides))  # type: ignore[arg-type]

    return make
