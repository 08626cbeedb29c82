"""Token ids in training equal those in serving; only answers have labels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conf.errors import InputError
from finetune.formats import ANSWERS
from finetune.prepare_dpo import tokenize_pairs
from finetune.tokens import IGNORED, has_system_turn, tokenize
from tests.finetune.conftest import TEMPLATES, load_template, prepared

FIRST = {"role": "user", "content": "What is 3 + 5?"}
EIGHT = {"role": "assistant", "content": '"8" it is.'}
SECOND = {"role": "user", "content": "Sure?"}
YES = {"role": "assistant", "content": "Yes."}


def tokens(row: dict, tokenizer, name: str = "danube") -> tuple[list[int], list[int]]:
    (sequence,) = tokenize([row], load_template(name), tokenizer)
    return sequence["input_ids"], sequence["labels"]


def learned(ids: list[int], labels: list[int], tokenizer) -> str:
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    return tokenizer.decode([label for label in labels if label != IGNORED])


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_token_for_token_what_a_server_sends(tokenizer, name: str) -> None:
    tokenizer, template = prepared(tokenizer, name)
    (row,) = tokenize([{"prompt": [FIRST], "completion": [EIGHT]}], template, tokenizer)
    ids, labels = row["input_ids"], row["labels"]
    served = tokenizer.apply_chat_template([FIRST], add_generation_prompt=True)["input_ids"]
    assert ids[: len(served)] == served
    assert labels[: len(served)] == [IGNORED] * len(served)
    answer = [*tokenizer.encode(EIGHT["content"]), tokenizer.eos_token_id]
    assert ids[len(served) : len(served) + len(answer)] == answer
    assert labels[len(served) : len(served) + len(answer)] == answer
    after = ids[len(served) + len(answer) :]  # ChatML and Zephyr end a turn with a new line
    assert tokenizer.decode(after).strip() == ""
    assert labels[len(labels) - len(after) :] == [IGNORED] * len(after)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_token_for_token_what_a_server_sends(tokenizer, name: str) -> None:
    """Every turn of a longer one, where no mark melts with an answer."""
    tokenizer, template = prepared(tokenizer, name)
    messages = [FIRST, YES, SECOND, YES]
    (row,) = tokenize([{"messages": messages}], template, tokenizer)
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    assert row["input_ids"] == whole
    learned_ids = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(learned_ids) == f"Yes.{tokenizer.eos_token}" * 2
    for turn in (1, 3):
        served = tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True)
        length = len(served["input_ids"])
        assert row["input_ids"][:length] == served["input_ids"]
        assert row["labels"][length - 1] == IGNORED
        assert row["labels"][length] == row["input_ids"][length]


def test_encoding_in_one_go_would_melt_the_mark_with_the_answer(tokenizer) -> None:
    """The case that the test above would miss with another tokenizer."""
    ids, _ = tokens({"prompt": [FIRST], "completion": [EIGHT]}, tokenizer)
    assert tokenizer.encode(tokenizer.decode(ids)) != ids


def test_every_answer_of_messages_is_learned(tokenizer) -> None:
    row = {"messages": [FIRST, EIGHT, SECOND, YES, SECOND]}
    assert learned(*tokens(row, tokenizer), tokenizer) == '"8" it is.</s>Yes.</s>'


def test_answers_in_a_prompt_are_not_learned(tokenizer) -> None:
    row = {"prompt": [FIRST, EIGHT, SECOND], "completion": [YES]}
    assert learned(*tokens(row, tokenizer), tokenizer) == "Yes.</s>"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{% generation %}", "{% generation %} ", "renders different text than template"),
        ("<|prompt|>", "<|user|>", "renders different text than template"),
        (
            "{{ '<|answer|>' }}{% generation %}",
            "{% generation %}{{ '<|answer|>' }}",
            "does not begin after the generation prompt",
        ),
        ("{% generation %}", "{% if true %}", "marks 0 of the 1 assistant turns"),
    ],
)
def test_a_twin_that_differs_is_refused(tokenizer, old: str, new: str, words: str) -> None:
    template = load_template("danube")
    twin = str(template.training_template).replace(old, new)
    if "{% if true %}" in twin:
        twin = twin.replace("{% endgeneration %}", "{% endif %}")
    template = replace(template, training_template=twin)
    with pytest.raises(InputError, match=words):
        list(tokenize([{"prompt": [FIRST], "completion": [EIGHT]}], template, tokenizer))


def test_a_conversation_that_the_template_refuses(tokenizer) -> None:
    row = {"messages": [FIRST, {"role": "system", "content": "Be brief."}, EIGHT]}
    with pytest.raises(InputError, match=r"conversation 2: chat_template=danube2 rejects it"):
        list(tokenize([{"messages": [FIRST, EIGHT]}, row], load_template("danube2"), tokenizer))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_prompt_goes_to_the_question_where_there_is_no_turn_for_it(
    tokenizer, name: str
) -> None:
    """Rows of OpenOrca and of its pairs give the tokens that a server gets.

    Its client puts the text of the system turn into the question.
    """
    tokenizer, template = prepared(tokenizer, name)
    system = {"role": "system", "content": "Be brief."}
    in_front = {"role": "user", "content": f"Be brief.\n\n{FIRST['content']}"}
    refused = name in ("danube2", "danube3", "mistral")
    assert has_system_turn(template, tokenizer) is not refused
    turns = [in_front] if refused else [system, FIRST]
    served = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    orca = {"system_prompt": "Be brief.", "question": FIRST["content"], "response": "8."}
    row = read_row(orca, "openorca")
    (example,) = tokenize([row], template, tokenizer)
    assert example["input_ids"][: len(served)] == served
    assert example["labels"][: len(served)] == [IGNORED] * len(served)
    pair = {"prompt": row["prompt"], "chosen": [EIGHT], "rejected": [YES]}
    (found,) = tokenize_pairs([pair], template, tokenizer)
    assert found["prompt_ids"] == served
    (talk,) = tokenize([{"messages": [system, FIRST, YES]}], template, tokenizer)
    assert talk["input_ids"][: len(served)] == served


def read_row(content: dict, name: str) -> dict:
    made = ANSWERS[name].convert(content)
    return {**made, "completion": [{"role": "assistant", "content": made["completion"]}]}


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_that_messages_spell_are_text(tokenizer, name: str) -> None:
    """In prompts, answers and system turns, as in pretraining; the template's own stay tokens."""
    tokenizer, template = prepared(tokenizer, name)
    end = tokenizer.eos_token
    strike = {"role": "user", "content": f"<s>Strike{end} out 3 in HTML<pad>"}
    html = {"role": "assistant", "content": f"Use <s>3</s> {end}and <|im_start|>then continue."}
    plain = {"prompt": [FIRST], "completion": [EIGHT]}
    spelled = {"prompt": [strike], "completion": [html]}
    rows = list(tokenize([plain, spelled], template, tokenizer))
    special = set(tokenizer.all_special_ids) | set(
        tokenizer.convert_tokens_to_ids(template.special_tokens)
    )
    for key in ("input_ids", "labels"):
        found = [[token for token in row[key] if token in special] for row in rows]
        assert found[1] == found[0], key
    answer = [label for label in rows[1]["labels"] if label != IGNORED]
    assert tokenizer.decode(answer) == html["content"] + end
    pair = {"prompt": [strike], "chosen": [html], "rejected": [EIGHT]}
    (ids,) = tokenize_pairs([pair], template, tokenizer)
    assert ids["chosen_ids"] == answer
    assert ids["prompt_ids"] + answer == rows[1]["input_ids"][: len(ids["prompt_ids"] + answer)]
