"""The template of a tuning job is the model's own, unless another one is named."""

from __future__ import annotations

import copy

import pytest

from conf.chat import OWN, ChatTemplate, named_template
from conf.errors import InputError
from finetune.template import choose_template, with_end
from finetune.tokens import IGNORED, add_template_tokens, tokenize

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (  # leaves out the thoughts of earlier turns
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = [
    {"role": "user", "content": "3 + 5?"},
    {"role": "assistant", "content": "8."},
    {"role": "user", "content": "Say <|im_end|>"},
    {"role": "assistant", "content": " <|im_end|> it is. "},
]


@pytest.fixture
def chatty(tokenizer):
    copied = copy.deepcopy(tokenizer)
    copied.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    return copied


def learned(template, tokenizer):
    (row,) = tokenize([{"messages": TURNS}], template, tokenizer)
    shown = tokenizer.decode([label for label in row["labels"] if label != IGNORED])
    return row["input_ids"], shown


def test_the_model_keeps_its_own_template(chatty, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(SMOLLM2)
    template, notice = choose_template(None, tmp_path)
    assert (template.name, template.training_template, notice) == (OWN, None, None)
    template = with_end(template, chatty)
    assert template.end_token == "<|im_end|>"
    before = chatty.eos_token
    assert add_template_tokens(chatty, template) == []
    assert chatty.eos_token == before
    ids, shown = learned(template, chatty)
    assert shown == "8.<|im_end|> <|im_end|> it is. <|im_end|>"
    assert ids.count(chatty.convert_tokens_to_ids("<|im_end|>")) == 5  # not the two in messages
    assert "named SmolLM" in chatty.decode(ids)


def test_answers_are_those_that_a_training_twin_marks(chatty):
    twin = named_template("chatml")
    found = with_end(ChatTemplate(OWN, twin.template, None), chatty)
    add_template_tokens(chatty, twin)
    assert list(tokenize([{"messages": TURNS}], twin, chatty)) == list(
        tokenize([{"messages": TURNS}], found, chatty)
    )


def test_marks_that_only_the_last_answer_has_are_learned(chatty):
    _, shown = learned(with_end(ChatTemplate(OWN, QWEN3, None), chatty), chatty)
    assert shown.endswith("<think>\n\n</think>\n\n<|im_end|> it is.<|im_end|>")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "does not end an answer with a"),
        (
            "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}{{ messages | length }}",
            "",
        ),
        ("{{ raise_exception('no') }}", "no"),
    ],
)
def test_answers_that_cannot_be_found(chatty, template, reason):
    with pytest.raises(InputError, match=rf"^chat_template=null: .*{reason}.*chat_template=chatml"):
        with_end(ChatTemplate(OWN, template, None), chatty)


def test_a_named_template_replaces_the_model_s_in_so_many_words(tmp_path):
    danube, chatml = named_template("danube"), named_template("chatml")
    assert choose_template(None, tmp_path) == (danube, None)
    assert choose_template(chatml, tmp_path) == (chatml, None)
    (tmp_path / "chat_template.jinja").write_text(chatml.template)
    assert choose_template(None, tmp_path) == (chatml, None)
    assert choose_template(chatml, tmp_path) == (chatml, None)
    template, notice = choose_template(danube, tmp_path)
    assert template == danube
    assert notice is not None
    assert notice.startswith(f"chat_template=danube replaces the chat template of model={tmp_path}")
