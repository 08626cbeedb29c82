"""SQuAD's exact match and F1, for lm-eval tasks that import them from `transformers`.

lm-eval's CoQA, SQuAD and similar tasks import `transformers.data.metrics.squad_metrics`, which
`transformers` 5 no longer has. The definitions are those of the official script (Rajpurkar et al.,
arXiv 1606.05250): texts are compared without case, punctuation and articles, for F1 as bags of
words.
"""

from __future__ import annotations

import importlib.util
import re
import string
import sys
from collections import Counter
from types import ModuleType

NAME = "transformers.data.metrics.squad_metrics"


def normalize_answer(text: str) -> str:
    """Returns the text in lower case, without punctuation and articles, with single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def compute_exact(gold: str, predicted: str) -> int:
    """Returns 1 if both texts are equal after normalization, else 0."""
    return int(normalize_answer(gold) == normalize_answer(predicted))


def compute_f1(gold: str, predicted: str) -> float:
    """Returns the F1 of the shared words; two empty texts score 1."""
    wanted, given = normalize_answer(gold).split(), normalize_answer(predicted).split()
    if not wanted or not given:
        return float(wanted == given)
    common = sum((Counter(wanted) & Counter(given)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def install() -> None:
    """Registers these functions as the missing module, unless `transformers` has its own."""
    if NAME in sys.modules:
        return
    try:
        if importlib.util.find_spec(NAME) is not None:
            return
    except ModuleNotFoundError:
        pass
    metrics, squad = ModuleType(NAME.rpartition(".")[0]), ModuleType(NAME)
    for function in (normalize_answer, compute_exact, compute_f1):
        setattr(squad, function.__name__, function)
    vars(metrics)["squad_metrics"] = squad
    import transformers.data

    vars(transformers.data)["metrics"] = metrics
    sys.modules[metrics.__name__], sys.modules[NAME] = metrics, squad
