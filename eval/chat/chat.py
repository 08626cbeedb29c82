"""`python -m eval chat`: chats with a model in the terminal, in the model's chat format.

Answers are streamed. Piped input is read as one question per line, so that a conversation can be a
file.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Any

from omegaconf import MISSING

from conf.chat import text_of
from conf.errors import InputError
from eval.chat.llamacpp import LlamaCpp, find_file, is_gguf
from eval.load_model import LoadedModel, load_model

NEW = "/new"
"""Input that starts a new conversation."""
Messages = list[dict[str, str]]


@dataclass
class ChatConfig:
    """Configuration of `chat`.

    model: a folder, a run, a checkpoint of a run, or a name on the Hub, with a chat template; or a
        GGUF file, which llama.cpp answers with.
    system: system prompt, null for none; some chat templates do not support one.
    temperature: sampling temperature; 0 for greedy decoding.
    top_p: total probability of the likeliest tokens to sample from; 1 for all tokens.
    dtype: dtype to compute in; auto for the stored one if the device supports it, else float32.
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
            raise InputError(f"max_new_tokens={self.max_new_tokens}: expected 1 or more.")
        if self.temperature < 0:
            raise InputError(f"temperature={self.temperature}: expected 0 or more.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}: expected more than 0 and at most 1.")
        if self.repetition_penalty <= 0:
            raise InputError(f"repetition_penalty={self.repetition_penalty}: expected more than 0.")


def chat(config: ChatConfig) -> None:
    """Answers questions until the input ends.

    Raises:
        InputError: the model is not found, or its chat template is missing or does not support the
            system prompt.
    """
    if is_gguf(config.model):
        with LlamaCpp(find_file(config.model)) as server:
            if not server.has_template():
                raise no_template(config.model)
            converse(config, lambda messages: server.answer(messages, **sampling(config)))
        return
    import torch

    loaded = load_model(config.model, config.dtype, config.device)
    if not loaded.tokenizer.chat_template:
        raise no_template(config.model)
    check_system_turn(loaded, system_turn(config.system))
    torch.manual_seed(config.seed)
    converse(config, lambda messages: stream_answer(loaded, messages, config))


def no_template(model: str) -> InputError:
    """Returns the error for a model without a chat template."""
    return InputError(
        f"model={model}: the model has no chat template. Tune it first (python -m finetune sft)."
    )


def sampling(config: ChatConfig) -> dict[str, Any]:
    """Returns the settings of a request to llama.cpp."""
    return {
        "max_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": 0,
        "min_p": 0,
        "repeat_penalty": config.repetition_penalty,
        "seed": config.seed,
    }


def converse(config: ChatConfig, answer_to: Callable[[Messages], Iterator[str]]) -> None:
    """Prints the answers to all questions; `answer_to` yields one in pieces."""
    first = system_turn(config.system)
    if sys.stdin.isatty():
        print(f"{config.model}. {NEW} starts a new conversation, Ctrl-D exits.")
    messages = list(first)
    for question in read_questions():
        if question == NEW:
            messages = list(first)
            continue
        messages.append({"role": "user", "content": question})
        answer = ""
        for piece in answer_to(messages):
            print(piece, end="", flush=True)
            answer += piece
        print(flush=True)
        messages.append({"role": "assistant", "content": answer.strip()})


def read_questions() -> Iterator[str]:
    """Yields the lines of the terminal or pipe, skipping empty lines."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # a pipe may contain invalid UTF-8
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


def system_turn(system: str | None) -> Messages:
    """Returns the first messages of a conversation: the system prompt, or none.

    Raises:
        InputError: the prompt is not valid Unicode.
    """
    if not system:
        return []
    try:
        return [{"role": "system", "content": text_of(system)}]
    except ValueError as error:
        raise InputError(f"system={system!r:.40}: {error}.") from None


def check_system_turn(loaded: LoadedModel, first: Messages) -> None:
    """Raises InputError if the chat template rejects the system prompt."""
    from jinja2.exceptions import TemplateError

    try:
        conversation_ids(loaded, [*first, {"role": "user", "content": "?"}])
    except TemplateError as error:
        raise InputError(
            f"system: the model's chat template rejects a system prompt ({error}). Set system=null."
        ) from None


def conversation_ids(loaded: LoadedModel, messages: Messages) -> Any:
    """Returns the token ids (1, tokens) of a conversation up to the assistant's next turn."""
    import torch

    tokens = loaded.chat_tokens
    rendered = loaded.tokenizer.apply_chat_template(
        tokens.shield(messages), tokenize=False, add_generation_prompt=True
    )
    assert isinstance(rendered, str)
    return torch.tensor([tokens.encode(rendered)])


def truncated_ids(loaded: LoadedModel, messages: Messages, max_new_tokens: int) -> Any:
    """Returns the token ids (1, tokens) of a conversation, truncated to leave space for an answer.

    At most half of the context length is reserved for the answer. The oldest questions and answers
    are dropped first, then the beginning of the last question.
    """
    longest = getattr(loaded.model.config, "max_position_embeddings", None) or sys.maxsize
    reserved = min(max_new_tokens, longest // 2)
    system = [m for m in messages if m["role"] == "system"]
    kept = [m for m in messages if m["role"] != "system"]
    ids = conversation_ids(loaded, system + kept)
    while ids.shape[1] + reserved > longest and len(kept) > 1:
        kept = kept[2:]
        ids = conversation_ids(loaded, system + kept)
    question = loaded.chat_tokens.encode_text(kept[-1]["content"])
    excess = ids.shape[1] + reserved - longest
    while excess > 0 and question:  # repeat: truncated text may encode to more tokens
        question = question[excess:]
        text = str(loaded.tokenizer.decode(question))
        ids = conversation_ids(loaded, [*system, kept[-1] | {"content": text}])
        excess = ids.shape[1] + reserved - longest
    return ids[:, -max(1, longest - reserved) :]


def stream_answer(loaded: LoadedModel, messages: Messages, config: ChatConfig) -> Iterator[str]:
    """Yields the model's answer in pieces as it is generated."""
    from transformers import TextIteratorStreamer

    model: Any = loaded.model
    ids = truncated_ids(loaded, messages, config.max_new_tokens).to(loaded.device)
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
    errors: list[BaseException] = []

    def generate() -> None:
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
            errors.append(error)
            streamer.end()

    thread = Thread(target=generate, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if errors:
        raise errors[0]
