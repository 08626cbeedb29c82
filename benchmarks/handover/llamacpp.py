"""The column of the hand-over table for llama.cpp, which reads the GGUF file of each case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xllamacpp

from conf.errors import InputError, RunAborted
from eval.chat.llamacpp import EXACT, LlamaCpp
from model.gguf.command import GGUFConfig, gguf

NEW_TOKENS, SPECIAL = 24, 3


def find(cases: list[Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """Returns the version of llama.cpp's package, and the findings by family.

    cases: with `family`, `folder`, `lines`, `prompt`, `starts` and `chat`. Prompts are cut at the
        context length of the file.
    """
    return xllamacpp.__version__, {case.family: findings(case) for case in cases}


def findings(case: Any) -> dict[str, Any]:
    """Returns tokens, log-probabilities, greedy ids and the rendered chat of a case."""
    file = Path(case.folder).with_suffix(".gguf")
    try:
        gguf(GGUFConfig(model=case.folder, out=str(file), type="f32", overwrite=True))
        with LlamaCpp(file, *EXACT, "--threads", "1") as loaded:
            context = loaded.context_length()
            is_short = context < max(map(len, case.starts)) + NEW_TOKENS
            return {
                **({"context": context} if is_short else {}),
                "tokens": [loaded.tokenize(line, with_ends=True) for line in case.lines],
                "log_probabilities": loaded.log_probabilities(case.prompt[:context]),
                "greedy": [
                    loaded.greedy(start, NEW_TOKENS, forbidden=range(SPECIAL))
                    if len(start) < context
                    else []
                    for start in case.starts
                ],
                "rendered": loaded.rendered(case.chat),
            }
    except (InputError, RunAborted) as error:
        return {"error": str(error).split(". ")[0]}
