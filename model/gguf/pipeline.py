"""The steps of a tokenizer before it merges, in the terms of llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.errors import InputError
from model.families.gguf import GPT2_WORDS, PRE_TYPES

Step = Mapping[str, Any]
SPACE = "▁"


def refused(reason: str) -> InputError:
    """Returns the error for a tokenizer that llama.cpp does not have."""
    return InputError(
        f"tokenizer.json: {reason}, which llama.cpp does not have. Serve the folder with "
        "transformers or vLLM."
    )


def steps(step: Step | None, children: str) -> list[Step]:
    """Returns the steps of a normalizer or pre-tokenizer, without `Sequence` around them.

    children: key of the steps in a `Sequence`.
    """
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [part for child in step[children] for part in steps(child, children)]


def pre_type(tokenizer: Step) -> str:
    """Returns llama.cpp's name for the pre-tokenizer of a byte-level tokenizer.

    Raises InputError if it has no name there.
    """
    for step in steps(tokenizer["normalizer"], "normalizers"):
        if step["type"] != "NFC":
            raise refused(f"the normalizer {step['type']}")
    patterns: list[str] = []
    for step in steps(tokenizer["pre_tokenizer"], "pretokenizers"):
        patterns += _patterns(step)
    ignores_merges = bool(tokenizer["model"].get("ignore_merges"))
    found = PRE_TYPES.get((tuple(patterns), ignores_merges))
    if found is None:
        words = ", then ".join(patterns) or "nothing"
        merges = " and takes words that are tokens without merging" if ignores_merges else ""
        raise refused(f"the pre-tokenizer splits by {words}{merges}")
    return found


def _patterns(step: Step) -> list[str]:
    """Returns the patterns by which a step splits, [] if it does not split."""
    kind = step["type"]
    if kind == "ByteLevel":
        if step["add_prefix_space"]:
            raise refused("the pre-tokenizer ByteLevel adds a space before the text")
        return [GPT2_WORDS] if step.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if step["individual_digits"] else r"\p{N}+"]
    if kind == "Split" and "Regex" in step["pattern"]:
        behavior, inverted = step["behavior"], step["invert"]
        if (behavior, inverted) in (("Isolated", False), ("Removed", True)):
            return [step["pattern"]["Regex"]]
        raise refused(f"the pre-tokenizer Split with behavior {behavior}, invert {inverted}")
    raise refused(f"the pre-tokenizer {kind}")


def adds_space(tokenizer: Step) -> bool:
    """Returns whether a tokenizer of SentencePiece's kind adds a space before the text.

    Raises InputError if it changes a text in another way than replacing spaces.
    """
    added = replaced = False
    for step in steps(tokenizer["normalizer"], "normalizers"):
        if step == {"type": "Prepend", "prepend": SPACE} and not replaced:
            added = True
        elif step == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}:
            replaced = True
        else:
            raise refused(f"the normalizer {step['type']}")
    for step in steps(tokenizer["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace" and not replaced and step["replacement"] == SPACE:
            scheme, replaced = step["prepend_scheme"], True
            if scheme == "first" or step.get("split", True):
                raise refused(f"the pre-tokenizer Metaspace with {dict(step)}")
            added = scheme == "always"
        elif not (step["type"] == "Split" and step["pattern"] == {"String": " "} and replaced):
            raise refused(f"the pre-tokenizer {step['type']}")
    if not replaced:
        raise refused(f"tokens spelled without {SPACE} for a space")
    return added


def piece_scores(vocab: Mapping[str, int], merges: list[tuple[str, str]]) -> dict[str, float]:
    """Returns the score of each merged token, by which llama.cpp orders the merges.

    Raises InputError if scores of tokens cannot order the merges as their list does.
    """
    scores: dict[str, float] = {}
    last = None
    for left, right in merges:
        token = left + right
        if token != last and token in scores:
            raise refused(f"merges to {token!r} that are not one after the other")
        scores.setdefault(token, -float(len(scores) + 1))
        last = token
    listed = set(merges)
    for token in scores:
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair[0] in vocab and pair[1] in vocab and pair not in listed:
                raise refused(f"no merge of {pair[0]!r} and {pair[1]!r}, both of them tokens")
    return scores
