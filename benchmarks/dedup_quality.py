"""How many planted copies and leaks are found, and what else is dropped.

Real documents (this Python's own docs and sources), copies of some of them with a share of the
words replaced, and documents that hold questions of an evaluation set, all through
`python -m data_pipeline tokenize`'s own search for copies and its decontamination.

    python benchmarks/dedup_quality.py [--documents 2000]
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

EDITS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
LEAKS = ("verbatim", "upper case", "punctuation changed", "first half", "one sentence")


def main() -> None:
    """Measures both and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--copies", type=int, default=100, help="planted, of each kind")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dedup_quality.json"))
    options = parser.parse_args()
    texts = real_texts(options.documents)
    figures = {
        "documents": len(texts),
        "near_duplicates": near_duplicates(texts, options.copies),
        "decontamination": leaks(texts, options.copies),
    }
    print(json.dumps(figures, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")


def real_texts(count: int) -> list[str]:
    """Functions, classes and sections of the standard library and installed packages, of 100 to
    1000 words, no two of which are near copies of each other."""
    from data_pipeline.cleaning.config import DedupOptions

    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    texts = []
    for path in sorted({p for root in roots for p in root.rglob("*.py")}):
        if len(texts) >= 4 * count:
            break
        try:
            text = path.read_text()
        except (UnicodeDecodeError, OSError):
            continue
        words = text.split()
        if len(words) >= 100:
            texts.append(" ".join(words[:1000]))
    random.Random(0).shuffle(texts)
    gone = dropped(texts, DedupOptions(minhash=True))
    return [text for number, text in enumerate(texts) if number not in gone][:count]


def dropped(texts: list[str], options: object) -> set[int]:
    """Numbers of the documents that the search for near copies drops."""
    from data_pipeline.cleaning import minhash

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        minhash.write_signatures(texts, 0, folder, options)  # type: ignore[arg-type]
        for bucket in range(14):
            minhash.match_bucket(bucket, 14, folder, options)  # type: ignore[arg-type]
        found = minhash.resolve(folder, options)  # type: ignore[arg-type]
    return {int(number) for _, number in found}


def near_duplicates(texts: list[str], copies: int) -> dict[str, object]:
    """Recall for each share of replaced words; precision: of what is dropped the share that was
    planted."""
    from data_pipeline.cleaning.config import DedupOptions

    vocabulary = sorted({word for text in texts[:200] for word in text.split()})
    draw = random.Random(1)
    recall = {}
    planted_dropped = dropped_in_all = 0
    for share in EDITS:
        chosen = draw.sample(range(len(texts)), copies)
        planted = [edited(texts[number], share, vocabulary, draw) for number in chosen]
        gone = dropped([*texts, *planted], DedupOptions(minhash=True))
        found = sum(len(texts) + n in gone for n in range(copies))
        recall[f"{share:.0%} of words replaced"] = found / copies
        planted_dropped += found
        dropped_in_all += len(gone)
    return {"recall": recall, "precision": planted_dropped / max(1, dropped_in_all)}


def edited(text: str, share: float, vocabulary: list[str], draw: random.Random) -> str:
    """The text with a share of its words replaced by others of the corpus."""
    words = text.split()
    for place in draw.sample(range(len(words)), round(share * len(words))):
        words[place] = draw.choice(vocabulary)
    return " ".join(words)


def leaks(texts: list[str], copies: int) -> dict[str, object]:
    """An evaluation set of passages that are in no document; each is planted in a document in
    every form."""
    from data_pipeline.cleaning.chain import Chain
    from data_pipeline.cleaning.config import CleaningConfig, DecontaminateOptions

    draw = random.Random(2)
    passages, documents = texts[:copies], texts[copies:]
    items = [" ".join(text.split()[20:60]) for text in passages]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "exam.jsonl"
        path.write_text("".join(json.dumps({"text": item}) + "\n" for item in items))
        config = CleaningConfig(
            steps=["decontaminate"], decontaminate=DecontaminateOptions(files=[str(path)])
        )
        chain = Chain(config, ["decontaminate"])
    clean = [text for text in documents if not chain.run(text).dropped_by]
    recall = {}
    for form in LEAKS:
        found = 0
        for item in items:
            words = draw.choice(clean).split()
            place = draw.randrange(len(words))
            text = " ".join([*words[:place], leaked(item, form), *words[place:]])
            found += bool(chain.run(text).dropped_by)
        recall[form] = found / len(items)
    return {
        "recall": recall,
        "other documents dropped": f"{len(documents) - len(clean)} of {len(documents)}",
    }


def leaked(item: str, form: str) -> str:
    """An item as a page on the web might hold it."""
    words = item.split()
    return {
        "verbatim": item,
        "upper case": item.upper(),
        "punctuation changed": re.sub(r"[^\w\s]+", " - ", item),
        "first half": " ".join(words[: len(words) // 2]),
        "one sentence": " ".join(words[:14]),
    }[form]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
