"""A model of each family with its tokenizer and template, and what transformers 5 says about it.

Models have two to four layers, random weights, and RoPE and windows that are not the defaults.
Their head dimension and width are ones that every tool has kernels for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from conf.chat import named_template
from model.families import FAMILIES, family_named
from model.families.folder import hf_config, save_weights
from model.families.hf_forms import tokenizer_settings
from model.families.model_files import ModelFiles
from model.network import Decoder
from tests.corpora import byte_tokenizer
from tests.model.families.cases import PATHS
from tests.model.shapes import initialize, tiny

ASPECTS = ("tokens", "log-probabilities", "greedy text", "template", "window")
LINES = [
    *("def f(x):\n\treturn x", "Grüße, 日本語 🎉", "  a\r\nb ", "it's  12345", "x\u200bé\u0301"),
    *("for i in range(10):\n    print(i)\n", "tab\tand   spaces", "ĠĊ", "1,234.5e-6", "¿Qué?"),
]
CHAT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Count to 3."},
]
POSITIONS, NEW_TOKENS, SPECIAL = 512, 24, 3


@dataclass
class Case:
    """A model folder, and what transformers 5 reads in it.

    Attributes:
        family: Name of the family.
        folder: The Hugging Face folder, in float32.
        lines: Odd lines of text.
        tokens: Ids of each line.
        prompt: Ids of a prompt that is longer than every window.
        log_probabilities: That of each id of the prompt but the first.
        without_window: The same with full attention, None if the model has no window.
        starts: Ids of short prompts and of one beyond the window.
        greedy: Ids that greedy decoding adds to each, where tokens below SPECIAL are not allowed.
        chat: A conversation.
        rendered: Its text in the chat format, up to the next answer.
    """

    family: str
    folder: str
    lines: list[str]
    tokens: list[list[int]]
    prompt: list[int]
    log_probabilities: list[float]
    without_window: list[float] | None
    starts: list[list[int]]
    greedy: list[list[int]]
    chat: list[dict[str, str]]
    rendered: str


def make_case(family: str, folder: Path) -> Case:
    """Writes the model of a family as an export does, and returns its case."""
    from transformers import AutoTokenizer

    write_model(family, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generator = torch.Generator().manual_seed(7)
    prompt = torch.randint(SPECIAL, tokenizer.vocab_size, (160,), generator=generator).tolist()
    starts = [prompt[:3], prompt[10:19], prompt[:100]]
    model = load(folder)
    config = json.loads((folder / "config.json").read_text())
    windowed = config.get("sliding_window") is not None
    return Case(
        family,
        str(folder),
        LINES,
        [tokenizer(line).input_ids for line in LINES],
        prompt,
        log_probabilities(model, prompt),
        log_probabilities(load(folder, windowed=False), prompt) if windowed else None,
        starts,
        [greedy(model, start) for start in starts],
        CHAT,
        str(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)),
    )


def write_model(family: str, folder: Path) -> None:
    """Writes a random model of a family with the project's writer."""
    shape: dict[str, Any] = {
        **{"vocab_size": 320, "hidden_size": 128, "intermediate_size": 256, "num_layers": 4},
        **{"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "max_seq_len": POSITIONS},
    }
    settings = {**FAMILIES[family].fixed, **PATHS[family]}
    if settings.get("rope_pattern"):
        settings["rope_pattern"] = "RRRN"  # the one that published models and llama.cpp have
    config = tiny(**shape, architecture=family, **settings)
    model = Decoder(config)
    initialize(model, config, 0)
    folder.mkdir(parents=True)
    weights = ((k, v) for k, v in model.named_parameters() if k != "lm_head.weight")
    named = weights if config.tie_embeddings else iter(model.named_parameters())
    save_weights(folder, named, torch.float32, family_named(family))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    ModelFiles(
        hf_config(config, ids, "float32"),
        byte_tokenizer().to_str(),
        tokenizer_settings({"pad": "<pad>", "bos": "<s>", "eos": "</s>"}, POSITIONS),
        named_template("danube").template,
        {"_from_model_config": False, **ids},
    ).write(folder, "A model for tests.\n")


def load(folder: Path, *, windowed: bool = True) -> Any:
    """Returns the model of a folder in transformers, with full attention if asked for."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if not windowed:
        config.sliding_window = POSITIONS
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def log_probabilities(model: Any, ids: list[int]) -> list[float]:
    """Returns the log-probability of each id but the first."""
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return scores[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def greedy(model: Any, start: list[int]) -> list[int]:
    """Returns the likeliest ids that follow, special tokens excluded."""
    ids = list(start)
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, -1]
        scores[:SPECIAL] = -torch.inf
        ids.append(int(scores.argmax()))
    return ids[len(start) :]


def as_json(cases: list[Case]) -> str:
    """Returns cases as the text that a probe in another environment reads."""
    return json.dumps([asdict(case) for case in cases])
