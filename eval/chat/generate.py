"""`python -m eval generate`: continues prompts, or answers them as a chat model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console
from rich.text import Text

from conf.chat import text_of
from conf.errors import InputError
from conf.output_kinds import SAMPLES
from conf.outputs import Output
from conf.text_files import JSON_ENDINGS, json_objects, read_text
from eval.files import json_lines
from eval.load_model import LoadedModel, load_model

Prompt = str | list[dict[str, str]]


@dataclass
class GenerateConfig:
    """Configuration of `generate`.

    model: a folder, a run, a checkpoint of a run, or a name on the Hub.
    prompts: a list of prompts.
    prompts_file: a text file with one prompt per line, or a jsonl or JSON file of rows with
        `prompt` (text or messages) and optionally `completion`; it may be compressed.
    chat: true to render prompts with the model's chat template, false to continue their text.
    temperature: sampling temperature; 0 for greedy decoding.
    top_p: total probability of the likeliest tokens to sample from; 1 for all tokens.
    top_k: number of likeliest tokens to sample from, 0 for all tokens.
    limit: number of prompts, null for all.
    dtype: dtype to compute in; auto for the stored one if the device supports it, else float32.
    out: a jsonl file for prompts and completions, null for none.
    overwrite: replaces an existing file of completions.
    """

    model: str = MISSING
    prompts: list[str] = field(default_factory=list)
    prompts_file: str | None = None
    chat: bool = False
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    limit: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    out: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens}: expected 1 or more.")
        if self.temperature < 0:
            raise InputError(f"temperature={self.temperature}: expected 0 or more.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}: expected more than 0 and at most 1.")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k}: expected 0 or more.")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit={self.limit}: expected 1 or more, or null for all prompts.")
        if self.repetition_penalty <= 0:
            raise InputError(f"repetition_penalty={self.repetition_penalty}: expected more than 0.")


def generate(config: GenerateConfig) -> None:
    """Prints each prompt with its completion and writes `out`.

    Raises:
        InputError: the model or the prompts are missing, or the model has no chat template.
    """
    output = None
    if config.out is not None:
        output = Output(config.out, SAMPLES, config.overwrite, [config.model, config.prompts_file])
        output.check()
    prompts = read_prompts(config)
    loaded = load_model(config.model, config.dtype, config.device)
    if config.chat and not loaded.tokenizer.chat_template:
        raise InputError(
            f"chat=true: model={config.model} has no chat template. Use chat=false, or tune the "
            "model first (python -m finetune sft)."
        )
    console = Console()
    rows = []
    for number, row in enumerate(prompts):
        text, completion, ended = complete(loaded, row["prompt"], config, config.seed + number)
        console.print(Text(text, style="dim") + Text(completion, style="bold"), soft_wrap=True)
        console.rule(style="dim")
        rows.append(
            {
                **row,
                "prompt": text,
                "generated": completion,
                "ended": ended,
                "model": config.model,
                "computed_in": loaded.dtype,
            }
        )
    if output:
        output.write(json_lines(rows))


def read_prompts(config: GenerateConfig) -> list[dict[str, Any]]:
    """Returns rows with `prompt`, and with `reference` if the row of the file has a completion.

    Raises:
        InputError: there are no prompts, or a row of the file has no prompt.
    """
    rows: list[dict[str, Any]] = []
    for number, prompt in enumerate(config.prompts, 1):
        rows.append({"prompt": read_prompt({"prompt": prompt}, "prompt", f"prompts, {number}")})
    if config.prompts_file is not None:
        path = Path(config.prompts_file)
        if not path.is_file():
            raise InputError(
                f"prompts_file={path}: the file does not exist. Give a text or jsonl file."
            )
        if path.name.endswith(JSON_ENDINGS):
            for place, row in json_objects(path, "prompts_file"):
                prompt_row = {"prompt": read_prompt(row, "prompt", place)}
                if row.get("completion") is not None:
                    prompt_row["reference"] = plain_text(read_prompt(row, "completion", place))
                rows.append(prompt_row)
        else:
            lines = read_text(path, "prompts_file").splitlines()
            rows += [{"prompt": line} for line in lines if line.strip()]
    if not rows:
        raise InputError("there are no prompts. Add prompts=[...] or prompts_file=...")
    for number, row in enumerate(rows, 1):
        if not row["prompt"]:
            raise InputError(f"prompt {number} is empty. Give a text to continue.")
    return rows[: config.limit]


def read_prompt(row: dict[str, Any], key: str, place: str) -> Prompt:
    """Returns the text or messages that a row has under a key.

    Raises:
        InputError: the row has neither under this key.
    """
    value = row.get(key)
    if not isinstance(value, str | list):
        raise InputError(
            f"{place}: the key '{key}' is missing. Give each row text or messages under this key."
        )
    try:
        if isinstance(value, str):
            return text_of(value)
        return [read_message(message) for message in value]
    except ValueError as error:
        raise InputError(f"{place}: '{key}' is {value!r:.60}: {error}.") from None


def read_message(value: Any) -> dict[str, str]:
    """Returns a message with its content as text.

    Raises:
        ValueError: the value is not a message.
    """
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise ValueError("expected messages, each with a role and content")
    return {"role": text_of(value["role"]), "content": text_of(value.get("content"))}


def complete(
    loaded: LoadedModel, prompt: Prompt, config: GenerateConfig, seed: int
) -> tuple[str, str, bool]:
    """Returns the rendered prompt, the completion, and whether it ended with an EOS token.

    Raises:
        InputError: the chat template rejects the prompt, or the prompt is longer than the model's
            context length.
    """
    import torch
    from jinja2.exceptions import TemplateError

    model: Any = loaded.model
    tokenizer: Any = loaded.tokenizer
    if config.chat:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        tokens = loaded.chat_tokens
        try:
            rendered = tokenizer.apply_chat_template(
                tokens.shield(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise InputError(
                f"the model's chat template rejects the prompt {messages!s:.80} ({error}). Correct "
                "the prompt."
            ) from None
        assert isinstance(rendered, str)
        text, prompt_ids = tokens.plain(rendered), tokens.encode(rendered)
    else:
        text = plain_text(prompt)
        prompt_ids = tokenizer(text)["input_ids"]
    longest = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    if len(prompt_ids) >= longest:
        raise InputError(
            f"the prompt {text!r:.40} has {len(prompt_ids)} tokens, but the context length of "
            f"model={config.model} is {longest}, including the completion. Shorten the prompt."
        )
    inputs = torch.tensor([prompt_ids], device=loaded.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if config.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
        }
    torch.manual_seed(seed)
    with torch.inference_mode():
        ids = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=config.max_new_tokens,
            repetition_penalty=config.repetition_penalty,
            **sampling,
        )[0, inputs.shape[1] :]
    ended = bool((ids == tokenizer.eos_token_id).any())
    return text, str(tokenizer.decode(ids, skip_special_tokens=True)), ended


def plain_text(prompt: Prompt) -> str:
    """Returns the text of a prompt without applying a chat template."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(message["content"] for message in prompt)
