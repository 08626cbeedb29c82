"""`python -m eval chat`: a conversation with a model in the terminal, in its own chat format.

Answers are printed as they are written. What is piped in is read a question a line, so that a
conversation can be a file.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Any

from omegaconf import MISSING

from conf.chat import text_of
from conf.errors import InputError
from eval.load_model import LoadedModel, load_model

NEW = "/new"
Messages = list[dict[str, str]]


@dataclass
class ChatConfig:
    """model: a folder, a run, one of its checkpoints, or a name on the Hub; it has a chat template.

    system: what the model is told beforehand, null for nothing; some formats know no such role.
    temperature: 0 takes the likeliest token each time; top_p: what is drawn from, 1 for all.
    dtype: auto for the stored type where the device multiplies it, else float32.
    """

    model: str = MISSING
    system: str | None = None
    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.1
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens}, expected at least 1.")
        if self.temperature < 0:
            raise InputError(f"temperature={self.temperature}, expected 0 or more.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}, expected more than 0 and at most 1.")
        if self.repetition_penalty <= 0:
            raise InputError(f"repetition_penalty={self.repetition_penalty}, expected above 0.")


def chat(config: ChatConfig) -> None:
    """Talks until the input ends.

    Raises:
        InputError: there is no such model, or it has no chat template or none with a system role.
    """
    import torch

    loaded = load_model(config.model, config.dtype, config.device)
    if not loaded.tokenizer.chat_template:
        raise InputError(
            f"model={config.model} has no chat template: tune it first (python -m finetune sft)."
        )
    first = first_turn(config.system)
    check_system(loaded, first)
    torch.manual_seed(config.seed)
    if sys.stdin.isatty():
        print(f"{config.model}. {NEW} begins anew, Ctrl-D ends.")
    messages = list(first)
    for question in questions():
        if question == NEW:
            messages = list(first)
            continue
        messages.append({"role": "user", "content": question})
        said = ""
        for piece in answer(loaded, messages, config):
            print(piece, end="", flush=True)
            said += piece
        print(flush=True)
        messages.append({"role": "assistant", "content": said.strip()})


def questions() -> Iterator[str]:
    """What the user types, or the lines of a pipe; empty ones are passed over."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # a pipe may hold what is no UTF-8
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


def first_turn(system: str | None) -> Messages:
    """Returns what a conversation begins with; raises InputError where it is not Unicode."""
    if not system:
        return []
    try:
        return [{"role": "system", "content": text_of(system)}]
    except ValueError as error:
        raise InputError(f"system={system!r:.40}: {error}.") from None


def check_system(loaded: LoadedModel, first: Messages) -> None:
    """Raises InputError where the template refuses a system prompt."""
    from jinja2.exceptions import TemplateError

    try:
        ids_of(loaded, [*first, {"role": "user", "content": "?"}])
    except TemplateError as error:
        raise InputError(f"system: the model's chat template refuses it ({error}).") from None


def ids_of(loaded: LoadedModel, messages: Messages) -> Any:
    """Returns the token ids of a conversation up to where the assistant speaks, (1, tokens)."""
    import torch

    tokens = loaded.chat_tokens
    rendered = loaded.tokenizer.apply_chat_template(
        tokens.shield(messages), tokenize=False, add_generation_prompt=True
    )
    assert isinstance(rendered, str)
    return torch.tensor([tokens.encode(rendered)])


def fitting(loaded: LoadedModel, messages: Messages, room: int) -> Any:
    """`ids_of` of as much of the conversation as the model can see, with room for an answer of so
    many tokens, or of half of what it can see: the oldest questions and their answers are
    forgotten first, then the beginning of the last question."""
    longest = getattr(loaded.model.config, "max_position_embeddings", None) or sys.maxsize
    room = min(room, longest // 2)
    system = [m for m in messages if m["role"] == "system"]
    kept = [m for m in messages if m["role"] != "system"]
    ids = ids_of(loaded, system + kept)
    while ids.shape[1] + room > longest and len(kept) > 1:
        kept = kept[2:]
        ids = ids_of(loaded, system + kept)
    question = loaded.chat_tokens.encode_text(kept[-1]["content"])
    over = ids.shape[1] + room - longest
    while over > 0 and question:  # cut, text may become more tokens than it was
        question = question[over:]
        text = str(loaded.tokenizer.decode(question))
        ids = ids_of(loaded, [*system, kept[-1] | {"content": text}])
        over = ids.shape[1] + room - longest
    return ids[:, -max(1, longest - room) :]


def answer(loaded: LoadedModel, messages: Messages, config: ChatConfig) -> Iterator[str]:
    """Pieces of the model's answer, as they come."""
    from transformers import TextIteratorStreamer

    model: Any = loaded.model
    ids = fitting(loaded, messages, config.max_new_tokens).to(loaded.device)
    streamer: Any = TextIteratorStreamer(
        loaded.tokenizer, skip_prompt=True, skip_special_tokens=True
    )
    sampling: dict[str, Any] = {"do_sample": False}
    if config.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": 0,
        }
    failed: list[BaseException] = []

    def write() -> None:
        try:
            model.generate(
                input_ids=ids,
                attention_mask=ids.new_ones(ids.shape),
                max_new_tokens=config.max_new_tokens,
                repetition_penalty=config.repetition_penalty,
                streamer=streamer,
                **sampling,
            )
        except BaseException as error:
            failed.append(error)
            streamer.end()

    thread = Thread(target=write, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failed:
        raise failed[0]
