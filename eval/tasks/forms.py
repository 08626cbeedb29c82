"""Forms of the tasks that are made from a corpus, as lm-eval reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PERPLEXITY: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": metric} for metric in ("bits_per_byte", "byte_perplexity", "word_perplexity")
    ],
    "metadata": {"version": 1.0},
}


def by_depth(needle: Mapping[str, Any], digits: str) -> dict[float, list[int]]:
    """Returns the scores of a needle task's samples, keyed by depth in percent.

    Args:
        needle: Metadata of the task, whose `depths` alternate over the samples.
        digits: A digit per sample, 1 if the fact was found.
    """
    found: dict[float, list[int]] = {}
    for number, digit in enumerate(digits):
        depth = needle["depths"][number % len(needle["depths"])]
        found.setdefault(depth, []).append(int(digit))
    return found


def multiple_choice(*metrics: str, **metadata: Any) -> dict[str, Any]:
    """Returns the form of a task whose rows have a context, choices and a label.

    Args:
        *metrics: Names of the metrics, all of which are means and better if higher.
        **metadata: Further metadata of the task.
    """
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "{{label}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in metrics
        ],
        "metadata": {"version": 1.0, **metadata},
    }
