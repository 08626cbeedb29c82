"""Conversations and pairs from OpenAssistant's message trees (oasst1, oasst2).

A row is one message that names its parent. Annotators ranked the answers to the same message, and
rank 0 is the best. The jsonl files of the data sets omit null values: the parent of a first
message, and the rank of a message that was not ranked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from finetune.sources import PlacedRow

ROLES = {"prompter": "user", "assistant": "assistant"}

Message = dict[str, str]
Replies = dict[str | None, list[dict[str, Any]]]


def best_conversations(rows: Iterator[PlacedRow], language: str) -> Iterator[PlacedRow]:
    """Yields one conversation per tree, which follows the best-ranked replies to the last answer.

    Trees without an answer are skipped.
    """
    replies = _replies(rows, language)
    for root in replies[None]:
        path = [root]
        while following := replies[path[-1]["message_id"]]:
            path.append(min(following, key=_rank))
        while path and path[-1]["role"] != "assistant":
            path.pop()
        if path:
            yield root["place"], {"messages": [_message(node) for node in path]}


def best_against_worst(rows: Iterator[PlacedRow], language: str) -> Iterator[PlacedRow]:
    """Yields the best and the worst answer to each message as a pair.

    This is the data of the second DPO stage of Danube. Messages whose answers do not have at least
    two different ranks are skipped.
    """
    replies = _replies(rows, language)
    open_paths = [[root] for root in replies[None]]
    while open_paths:
        path = open_paths.pop(0)
        following = replies[path[-1]["message_id"]]
        open_paths += [[*path, node] for node in following]
        ranked = sorted((node for node in following if node.get("rank") is not None), key=_rank)
        if path[-1]["role"] == "prompter" and ranked and ranked[0]["rank"] < ranked[-1]["rank"]:
            prompt = [_message(node) for node in path]
            chosen, rejected = ranked[0]["text"], ranked[-1]["text"]
            yield (
                path[-1]["place"],
                {"prompt": prompt, "chosen": chosen, "rejected": rejected},
            )


def _replies(rows: Iterator[PlacedRow], language: str) -> Replies:
    """Returns the messages in a language by the id of their parent, in the order of the rows.

    Deleted and rejected messages are omitted.
    """
    replies: Replies = defaultdict(list)
    for place, row in rows:
        kept = row["lang"] == language and not row.get("deleted")
        if kept and row.get("review_result") is not False and row["role"] in ROLES:
            replies[row.get("parent_id")].append(row | {"place": place})
    return replies


def _rank(node: dict[str, Any]) -> float:
    rank = node.get("rank")
    return float("inf") if rank is None else rank


def _message(node: dict[str, Any]) -> Message:
    return {"role": ROLES[node["role"]], "content": node["text"]}
