"""The picture of one example: its tokens make up the text, the marked ones are what is learned."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from conf.errors import InputError
from finetune.show import ShowConfig, show, token_texts
from tests.finetune.conftest import load_template

CHAT = [
    {"role": "user", "content": "Is 2 < 3?"},
    {"role": "assistant", "content": "<b>Yes</b>\né 😀"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


@pytest.fixture
def config(base: Path, tmp_path: Path) -> ShowConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": CHAT[:2]}) + "\n" + json.dumps({"messages": CHAT}))
    template = load_template("danube")
    return ShowConfig(str(base), str(path), template, row=1, out=str(tmp_path / "page.html"))


def test_page(config: ShowConfig, capsys) -> None:
    show(config)
    printed = capsys.readouterr().out
    assert "danube, row 1 of rows.jsonl" in printed
    page = Path(config.out or "").read_text()
    body = page.split("<pre>")[1].split("</pre>")[0]

    def text(kind: str) -> str:
        spans = re.findall(r'<span class="(\w)" title="[^"]*">(.*?)</span>', body, re.DOTALL)
        parts = "".join(inside for which, inside in spans if which in kind)
        return html.unescape(re.sub(r"<i>.</i>", "", parts))

    answers = [message["content"] + "</s>" for message in CHAT if message["role"] == "assistant"]
    assert text("l") == "".join(answers)
    prompts = [f"<|prompt|>{m['content']}</s><|answer|>" for m in CHAT if m["role"] == "user"]
    assert text("m") == "".join(prompts)
    assert text("lm") == prompts[0] + answers[0] + prompts[1] + answers[1]
    learned, masked = body.count('class="l"'), body.count('class="m"')
    assert f"{learned + masked} tokens: {learned} trained on (green), {masked} masked" in printed
    assert f'taken on <span class="l">&nbsp;{learned} tokens&nbsp;</span>' in page
    assert "http" not in page  # opens offline


def test_tokens_add_up_to_the_text(tokenizer) -> None:
    said = "a  b\n\n  c é 😀😀 x"
    ids = tokenizer.encode(said)
    assert "".join(token_texts(tokenizer, ids)) == said
    assert len(token_texts(tokenizer, ids)) == len(ids)


def test_refused(config: ShowConfig, tmp_path: Path) -> None:
    config.row = 2
    with pytest.raises(InputError, match=r"row=2: there are 2 rows\. Give a number from 0 to 1"):
        show(config)
    config.row, config.model = 0, str(tmp_path)
    with pytest.raises(InputError, match=r"tokenizer_config\.json is missing"):
        show(config)
