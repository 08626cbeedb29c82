"""Measures which near duplicates and leaked test items are found, compared with an exact count.

The documents are real ones (the sources of this Python and of its packages, which have duplicates
themselves), copies of some of them with a fraction of the words replaced, and documents into which
questions of an evaluation set were inserted. Plain sets of all n-grams decide what truly is a
duplicate or a leak, not the code that is measured.

    python benchmarks/dedup_quality.py [--documents 3000]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np

from benchmarks.figures import write_results
from benchmarks.machine import machine

EDITS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
LEAKS = ("verbatim", "upper case", "other punctuation", "first half", "one sentence of 14 words")
BANDS = ((0.9, 1.01), (0.8, 0.9), (0.7, 0.8), (0.5, 0.7), (0.0, 0.5))
WORD = re.compile(r"[a-z0-9]+")


def main() -> None:
    """Measures both and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--planted", type=int, default=200, help="of each kind")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dedup_quality.json"))
    options = parser.parse_args()
    texts = real_texts(options.documents)
    figures = {
        "machine": machine(),
        "documents": len(texts),
        "near_duplicates": near_duplicates(texts, options.planted),
        "decontamination": leaks(texts, options.planted),
    }
    write_results(options.out, figures)


def real_texts(count: int) -> list[str]:
    """Returns the first 1000 words of source files in plain ASCII, chosen at random."""
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    paths = sorted({p for root in roots for p in root.rglob("*.py")})
    random.Random(0).shuffle(paths)
    texts: list[str] = []
    for path in paths:
        words = path.read_bytes().decode("ascii", "ignore").split()
        if len(words) >= 150 and len(texts) < count:
            texts.append(" ".join(words[:1000]))
    return texts


def grams(text: str, n: int, numbers_alike: bool = False) -> set[tuple[str, ...]]:
    """Returns all runs of n words, in lower case and without punctuation."""
    words = WORD.findall(text.lower())
    if numbers_alike:
        words = ["0" if word.isdigit() else word for word in words]
    return set(zip(*(words[at:] for at in range(n)), strict=False))


def near_duplicates(texts: list[str], planted: int) -> dict[str, object]:
    """Returns recall by fraction of replaced words and by true similarity, and precision.

    Precision is given by the similarity of each dropped document to its nearest other document.
    """
    draw = random.Random(1)
    vocabulary = sorted({word for text in texts[:200] for word in text.split()})
    documents = list(texts)
    edits: list[float | None] = [None] * len(texts)
    for share in EDITS:
        for number in draw.sample(range(len(texts)), planted):
            documents.append(edited(texts[number], share, vocabulary, draw))
            edits.append(share)
    gone = dropped(documents)
    nearest, before = similarities(documents)
    by_edit = {
        f"{share:.0%} of words replaced": {
            "true similarity, mean": float(np.mean(before[[e == share for e in edits]])),
            "dropped": sum(n in gone for n, e in enumerate(edits) if e == share) / planted,
        }
        for share in EDITS
    }
    is_gone = np.array([number in gone for number in range(len(documents))])
    by_band, said = {}, {}
    for low, high in BANDS:
        inside = (before >= low) & (before < high)
        name = f"{low} and more" if high > 1 else f"{low} to {high}"
        by_band[name] = {"documents": int(inside.sum()), "dropped": float(is_gone[inside].mean())}
        said[name] = int((is_gone & (nearest >= low) & (nearest < high)).sum())
    return {
        "planted": by_edit,
        "by similarity to the nearest earlier document": by_band,
        "dropped": len(gone),
        "dropped, by similarity to the nearest document": said,
        "precision (nearest document shares half of the n-grams or more)": float(
            (nearest[is_gone] >= 0.5).mean()
        ),
    }


def dropped(texts: list[str]) -> set[int]:
    """Returns the numbers of the documents that deduplication drops."""
    from data_pipeline.cleaning.config import DedupOptions
    from data_pipeline.dedup import minhash
    from data_pipeline.dedup.components import star_forest
    from data_pipeline.dedup.ranges import RANGES

    options = DedupOptions(minhash=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        minhash.write_signatures(texts, folder / "keys", options)
        units = [(0, folder / "keys")]
        links = [
            minhash.match_keys(bucket, 0, RANGES, units, options)
            for bucket in range(options.buckets)
        ]
    return set(star_forest(np.concatenate(links, 1))[0].tolist())


def similarities(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact Jaccard similarity of each document's 5-grams to its nearest documents.

    The first is over all other documents, the second over the earlier ones.
    """
    from scipy.sparse import csr_matrix

    numbers: dict[tuple[str, ...], int] = {}
    rows = [
        [numbers.setdefault(gram, len(numbers)) for gram in grams(text, 5, numbers_alike=True)]
        for text in texts
    ]
    sizes = np.array(list(map(len, rows)))
    columns = np.concatenate([np.array(row, np.int64) for row in rows])
    ends = np.concatenate(([0], np.cumsum(sizes)))
    table = csr_matrix((np.ones(len(columns), np.int32), columns, ends))
    shared = (table @ table.T).tocoo()
    other = shared.row != shared.col
    row, column = shared.row[other], shared.col[other]
    alike = shared.data[other] / (sizes[row] + sizes[column] - shared.data[other])
    nearest, before = np.zeros(len(texts)), np.zeros(len(texts))
    np.maximum.at(nearest, row, alike)
    earlier = column < row
    np.maximum.at(before, row[earlier], alike[earlier])
    return nearest, before


def edited(text: str, share: float, vocabulary: list[str], draw: random.Random) -> str:
    """Replaces a fraction of the words of a text by others of the corpus."""
    words = text.split()
    for place in draw.sample(range(len(words)), round(share * len(words))):
        words[place] = draw.choice(vocabulary)
    return " ".join(words)


def leaks(texts: list[str], planted: int) -> dict[str, object]:
    """Makes an evaluation set of passages of 40 words, and documents with and without its items.

    The other documents are returned unchanged, and with an item inserted in each form.
    """
    draw = random.Random(2)
    passages, documents = texts[:planted], texts[planted:]
    items = [" ".join(text.split()[60:100]) for text in passages]
    find = finder(items)
    leaked_grams = set().union(*(grams(item, 13) for item in items))
    truly = [bool(grams(text, 13) & leaked_grams) for text in documents]
    found = [find(text) for text in documents]
    clean = [text for text, is_leak in zip(documents, truly, strict=True) if not is_leak]
    recall = {}
    for form in LEAKS:
        held = 0
        for item in items:
            words = draw.choice(clean).split()
            place = draw.randrange(len(words))
            held += find(" ".join([*words[:place], leaked(item, form), *words[place:]]))
        recall[form] = held / len(items)
    both = sum(a and b for a, b in zip(found, truly, strict=True))
    return {
        "recall, planted": recall,
        "documents as they are": len(documents),
        "that share 13 words with an item": sum(truly),
        "of these dropped": both,
        "others dropped": sum(found) - both,
    }


def finder(items: list[str]) -> Any:
    """Returns True if the cleaning step drops a text."""
    from data_pipeline.cleaning.chain import Chain
    from data_pipeline.cleaning.config import CleaningConfig, DecontaminateOptions

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "exam.jsonl"
        path.write_text("".join(json.dumps({"text": item}) + "\n" for item in items))
        config = CleaningConfig(
            steps=["decontaminate"], decontaminate=DecontaminateOptions(files=[str(path)])
        )
        chain = Chain(config, ["decontaminate"])
    return lambda text: bool(chain.run(text).dropped_by)


def leaked(item: str, form: str) -> str:
    """Formats an item as a page on the web might show it."""
    words = item.split()
    return {
        "verbatim": item,
        "upper case": item.upper(),
        "other punctuation": re.sub(r"[^\w\s]+", " - ", item),
        "first half": " ".join(words[: len(words) // 2]),
        "one sentence of 14 words": " ".join(words[:14]),
    }[form]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
