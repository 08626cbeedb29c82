"""`python -m finetune show`: one example as a model is trained on it, token by token.

It shows which tokens are trained on and which are masked, on the terminal and as a self-contained
HTML page, so that template, tokenizer and mask can be checked before a run.
"""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from conf.chat import ChatTemplate
from conf.errors import InputError
from conf.output_kinds import PAGE
from conf.outputs import Output
from finetune.rows import read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Token = tuple[int, str, bool]
"""A token: its id, its text, and True if the loss is taken on it."""


@dataclass
class ShowConfig:
    """Configuration of `show`.

    model: a Hugging Face folder, of which only the tokenizer is used.
    data, format, split, language, chat_template: same as for sft.
    row: index of the example, from 0.
    out: an HTML page to write; null for the terminal only.
    overwrite: replaces `out` if it is a page that Headwater made.
    """

    model: str = MISSING
    data: Any = MISSING
    chat_template: ChatTemplate | None = None
    format: str = "auto"
    split: str | None = None
    language: str = "en"
    row: int = 0
    out: str | None = None
    overwrite: bool = False


def show(config: ShowConfig) -> None:
    """Prints the example, and writes the page if `out` is given.

    Raises:
        InputError: the model, data or template is invalid, or the row does not exist.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    output = Output(config.out, PAGE, config.overwrite) if config.out else None
    if output:
        output.check()
    folder = Path(config.model)
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(
            f"model={folder}: tokenizer_config.json is missing. Give a Hugging Face model folder."
        )
    rows = read_rows(config.data, config.format, config.split, config.language)
    if not 0 <= config.row < len(rows):
        raise InputError(
            f"row={config.row}: there are {len(rows)} rows. Give a number from 0 to "
            f"{len(rows) - 1}."
        )

    from transformers import AutoTokenizer

    from finetune.template import choose_template, with_end
    from finetune.tokens import IGNORED, add_template_tokens, tokenize

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    chosen, notice = choose_template(config.chat_template, folder)
    if notice:
        print(notice)
    template = with_end(chosen, tokenizer)
    add_template_tokens(tokenizer, template)
    (example,) = tokenize([rows[config.row]], template, tokenizer)
    learned = [label != IGNORED for label in example["labels"]]
    ids = example["input_ids"]
    tokens = list(zip(ids, token_texts(tokenizer, ids), learned, strict=True))
    title = f"{template.name}, row {config.row} of {Path(str(config.data)).name}"
    print_tokens(title, tokens)
    if output:
        output.write(render_page(title, tokens))
        print(f"{config.out}: {len(tokens)} tokens, {sum(learned)} of them trained on")


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Returns the text that each token adds; concatenated, they are the whole text.

    A token that ends inside a character adds nothing, and the token that completes the character
    adds all of it.
    """
    pieces, start, done = [], 0, 0
    for end in range(1, len(ids) + 1):
        # Decoding from only a few tokens back is fast, and keeps spaces as they are.
        before: Any = tokenizer.decode(ids[start:done])
        text: Any = tokenizer.decode(ids[start:end])
        if text.endswith("\ufffd") and end < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        start, done = done, end
    return pieces


def print_tokens(title: str, tokens: list[Token]) -> None:
    """Prints the tokens to the terminal, trained ones in green and masked ones dim."""
    from rich.console import Console
    from rich.text import Text

    console, text = Console(), Text()
    for _, piece, learned in tokens:
        text.append(piece, style="bold green" if learned else "dim")
    console.print(title, style="bold", highlight=False)
    console.print(text, soft_wrap=True)
    learned_from = sum(learned for _, _, learned in tokens)
    console.print(
        f"{len(tokens)} tokens: {learned_from} trained on (green), "
        f"{len(tokens) - learned_from} masked (dim)",
        highlight=False,
    )


def render_page(title: str, tokens: list[Token]) -> str:
    """Returns a self-contained HTML page that shows the tokens."""
    spans = []
    for number, piece, learned in tokens:
        shown = html.escape(piece).replace("\n", "<i>↵</i>\n") or "<i>·</i>"
        hint = f"token {number}, {'trained on' if learned else 'masked'}"
        spans.append(f'<span class="{"l" if learned else "m"}" title="{hint}">{shown}</span>')
    learned_from = sum(learned for _, _, learned in tokens)
    return Template(TEMPLATE).substitute(
        title=html.escape(title),
        tokens="".join(spans),
        learned=learned_from,
        masked=len(tokens) - learned_from,
    )


TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title · Headwater example</title>
<style>
:root { color-scheme: light dark; --l: #bfe5c4; --ink: #14361a; --edge: #8885; --m: #8883; }
@media (prefers-color-scheme: dark) { :root { --l: #245c2f; --ink: #e3f6e6; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.25rem; }
pre { font: 14px/2 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
pre span { padding: .15em 0; border-right: 1px solid var(--edge); }
.l { background: var(--l); color: var(--ink); font-weight: 600; }
.m { background: var(--m); opacity: .75; }
i { opacity: .5; font-style: normal; }
</style></head><body>
<h1>$title</h1>
<p>The loss is taken on <span class="l">&nbsp;$learned tokens&nbsp;</span>.
<span class="m">&nbsp;$masked tokens&nbsp;</span> are masked: the model reads them, but they do not
enter the loss.</p>
<pre>$tokens</pre>
</body></html>
"""
