"""The chat templates: as published, and equal to their training twins."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from finetune.tokens import render
from tests.finetune.conftest import TEMPLATES, load_template, prepared

CHAT = [
    {"role": "user", "content": "Hello, how are you?"},
    {"role": "assistant", "content": "I'm doing great. How can I help you today?"},
    {"role": "user", "content": "I'd like to show off how chat templating works!"},
]
CHAT_TEXT = (
    "<|prompt|>Hello, how are you?</s>"
    "<|answer|>I'm doing great. How can I help you today?</s>"
    "<|prompt|>I'd like to show off how chat templating works!</s>"
)
OTHERS = {
    "chatml": (
        "<|im_start|>user\nHello, how are you?<|im_end|>\n"
        "<|im_start|>assistant\nI'm doing great. How can I help you today?<|im_end|>\n"
        "<|im_start|>user\nI'd like to show off how chat templating works!<|im_end|>\n"
    ),
    "llama3": (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHello, how are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        "I'm doing great. How can I help you today?<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "I'd like to show off how chat templating works!<|eot_id|>"
    ),
    "mistral": (
        "<s>[INST] Hello, how are you? [/INST]I'm doing great. How can I help you today?</s>"
        "[INST] I'd like to show off how chat templating works! [/INST]"
    ),
    "zephyr": (
        "<|user|>\nHello, how are you?</s>\n"
        "<|assistant|>\nI'm doing great. How can I help you today?</s>\n"
        "<|user|>\nI'd like to show off how chat templating works!</s>\n"
    ),
}
# chat_template of the tokenizer_config.json of each model.
PUBLISHED = {
    "danube": (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|prompt|>' + "
        "message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ '<|system|>' + "
        "message['content'] + eos_token }}{% elif message['role'] == 'assistant' %}{{ "
        "'<|answer|>'  + message['content'] + eos_token }}{% endif %}{% if loop.last and "
        "add_generation_prompt %}{{ '<|answer|>' }}{% endif %}{% endfor %}"
    ),
    "danube2": (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|prompt|>' + "
        "message['content'] + eos_token }}{% elif message['role'] == 'system' %}{{ "
        "raise_exception('System role not supported') }}{% elif message['role'] == 'assistant' "
        "%}{{ '<|answer|>'  + message['content'] + eos_token }}{% endif %}{% if loop.last and "
        "add_generation_prompt %}{{ '<|answer|>' }}{% endif %}{% endfor %}"
    ),
    "danube3": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ "
        "raise_exception('System role not supported') }}{% endif %}{% if ((message['role'] == "
        "'user') != (loop.index0 % 2 == 0)) or ((message['role'] == 'assistant') != (loop.index0 "
        "% 2 == 1)) %}{{ raise_exception('Conversation roles must alternate "
        "user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ "
        "'<|prompt|>' + message['content'].strip() + eos_token }}{% elif message['role'] == "
        "'assistant' %}{{ '<|answer|>' + message['content'].strip() + eos_token }}{% endif %}{% "
        "endfor %}{% if add_generation_prompt %}{{ '<|answer|>' }}{% endif %}"
    ),
}


def rendered(template: str, messages: list, **values: Any) -> str:
    values |= {"eos_token": "</s>", "bos_token": "<s>"}
    result: Any = render_jinja_template([messages], chat_template=template, **values)
    return result[0][0]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_template_is_the_published_one(name: str) -> None:
    template = load_template(name)
    assert template.name == name
    assert template.template == PUBLISHED[name]
    assert rendered(template.template, CHAT) == CHAT_TEXT
    assert rendered(template.template, CHAT, add_generation_prompt=True) == CHAT_TEXT + "<|answer|>"


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None)  # the first call compiles the template
@given(contents=st.lists(st.text(), min_size=1, max_size=5), asks=st.booleans())
def test_training_twin_renders_the_same_text(name: str, contents: list[str], asks: bool) -> None:
    roles = ("user", "assistant")
    chat = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    template = load_template(name)
    texts = {
        rendered(text, chat, add_generation_prompt=asks)
        for text in (template.template, str(template.training_template))
    }
    assert len(texts) == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_marked_with_their_end(name: str, tokenizer) -> None:
    tokenizer, template = prepared(tokenizer, name)
    text, answers = render({"messages": CHAT}, template, tokenizer)
    assert [text[a:b] for a, b in answers] == [CHAT[1]["content"] + tokenizer.eos_token]
    assert text == OTHERS.get(name, CHAT_TEXT)


def test_system_turn() -> None:
    chat = [{"role": "system", "content": "Be brief."}, CHAT[0]]
    assert rendered(load_template("danube").template, chat).startswith("<|system|>Be brief.</s>")
    for name in ("danube2", "danube3"):
        with pytest.raises(jinja2.TemplateError, match="System role not supported"):
            rendered(load_template(name).template, chat)
