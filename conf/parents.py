"""Describes the runs that a run descends from (I17)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def describe_parents(parents: Sequence[Mapping[str, Any]]) -> str:
    """Returns the chain of parents in words, the nearest first, as in `env.json`."""
    return ", ".join(map(_describe, parents))


def _describe(parent: Mapping[str, Any]) -> str:
    details = [f"{parent['tokens']:,} tokens"] if "tokens" in parent else []
    details += [f"order {parent['order'][:16]}"] if "order" in parent else []
    more = f" ({', '.join(details)})" if details else ""
    if "members" in parent:
        return f"average of {describe_members(parent['members'])}{more}"
    return f"{parent['kind']} of {name_of(parent)} from step {parent['step']:,}{more}"


def describe_members(members: Sequence[Mapping[str, Any]]) -> str:
    """Returns the checkpoints in an average with their weights, in words."""
    return ", ".join(
        f"{name_of(member)} at step {member['step']:,} ({member['weight']:.4g})"
        for member in members
    )


def name_of(parent: Mapping[str, Any]) -> str:
    """Returns the name of a parent's run folder."""
    return Path(str(parent["run"])).name
