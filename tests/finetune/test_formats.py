"""The data sets that Danube was tuned on, as local files of their published columns."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from conf.errors import InputError
from finetune.rows import fingerprint, read_pairs, read_rows


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED, GOOD, BAD = say("user", "3 + 5?"), say("assistant", "8."), say("assistant", "9.")
BRIEF = say("system", "Be brief.")
ANSWERED = {"prompt": [ASKED], "completion": [GOOD]}
COMPARED = {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}

ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "openorca": (
        {"id": "flan.1", "system_prompt": "Be brief.", "question": "3 + 5?", "response": "8."},
        {"prompt": [BRIEF, ASKED], "completion": [GOOD]},
    ),
    "openorca_without_system": (
        {"id": "niv.2", "system_prompt": "", "question": "3 + 5?", "response": "8."},
        ANSWERED,
    ),
    "metamathqa": (
        {"type": "GSM_SV", "query": "3 + 5?", "original_question": "x", "response": "8."},
        ANSWERED,
    ),
    "ultrachat": (
        {"prompt": "3 + 5?", "prompt_id": "f0", "messages": [ASKED, GOOD, ASKED, GOOD]},
        {"messages": [ASKED, GOOD, ASKED, GOOD]},
    ),
}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ultrafeedback": (
        {
            "prompt": "3 + 5?",
            "prompt_id": "f0",
            "chosen": [ASKED, GOOD],
            "rejected": [ASKED, BAD],
            "messages": [ASKED, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 7.0,
        },
        COMPARED,
    ),
    "intel_orca": (
        {"system": "Be brief.", "question": "3 + 5?", "chosen": "8.", "rejected": "9."},
        COMPARED | {"prompt": [BRIEF, ASKED]},
    ),
    "math_preference": (
        {
            "metadata": "{}",
            "instruction": "3 + 5?",
            "chosen_response": "8.",
            "chosen_rating": 9.0,
            "rejected_response": "9.",
            "rejected_rating": 7.0,
        },
        COMPARED,
    ),
}
KINDS = [pytest.param(read_rows, *ANSWERS[name], id=name) for name in ANSWERS]
KINDS += [pytest.param(read_pairs, *PAIRS[name], id=name) for name in PAIRS]


@pytest.mark.parametrize(("read", "row", "expected"), KINDS)
def test_columns_tell_the_format_in_every_kind_of_file(
    tmp_path: Path, read: Any, row: dict, expected: dict
) -> None:
    """jsonl, parquet, what `datasets` saved with and without splits, and a folder of files."""
    both = Dataset.from_list([row, row])
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    both.to_parquet(tmp_path / "b.parquet")
    both.save_to_disk(tmp_path / "c")
    splits = DatasetDict({"test": both.select([0]), "train": both})
    splits.save_to_disk(tmp_path / "d")
    for name in ("a.jsonl", "a.jsonl.gz", "b.parquet", "c", "d"):
        assert read(str(tmp_path / name)) == [expected] * 2, name
    assert read(str(tmp_path / "d"), split="test") == [expected]
    assert read([str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet")]) == [expected] * 4
    assert read(str(tmp_path)) == [expected] * 6
    assert fingerprint(read(str(tmp_path / "c"))) == fingerprint(read(str(tmp_path / "a.jsonl")))


def node(name: str, parent: str | None, rank: float | None, **other: Any) -> dict[str, Any]:
    role = "assistant" if name[0] == "a" else "prompter"
    columns = {"message_id": name, "parent_id": parent, "rank": rank, "text": f"{name}!"}
    return columns | {"role": role, "lang": "en", "deleted": False, "review_result": True} | other


TREES = [
    node("a_worst", "p", 2.0),  # a reply may come before what it answers
    node("p", None, None),
    node("a_mid", "p", 1.0),
    node("a_best", "p", 0.0),
    node("a_unranked", "p", None),
    node("a_deleted", "p", 3.0, deleted=True),
    node("a_bad", "p", 4.0, review_result=False),
    node("p2", "a_best", 0.0),
    node("p2_other", "a_best", 1.0),
    node("a2", "p2", None),
    node("p3", "a2", None),
    node("a4", "p2_other", 0.0),
    node("a5", "p2_other", 1.0),
    node("de", None, None, lang="de"),
    node("a_de0", "de", 0.0, lang="de"),
    node("a_de1", "de", 1.0, lang="de"),
]


@pytest.mark.parametrize("nulls", [True, False])
def test_oasst2(tmp_path: Path, nulls: bool) -> None:
    """Ranks become conversations, and pairs of the best and the worst answer, in one language.

    The rows are those of a table, which has nulls, and of the authors' jsonl, which omits them.
    """
    path = tmp_path / "oasst2.jsonl"
    rows = [{key: row[key] for key in row if nulls or row[key] is not None} for row in TREES]
    path.write_text("\n".join(map(json.dumps, rows)))

    def said(*names: str) -> list[dict[str, str]]:
        return [say("assistant" if n[0] == "a" else "user", f"{n}!") for n in names]

    assert read_rows(path) == [{"messages": said("p", "a_best", "p2", "a2")}]
    first, second = read_pairs(path)
    assert first == {"prompt": said("p"), "chosen": said("a_best"), "rejected": said("a_worst")}
    prompt = said("p", "a_best", "p2_other")
    assert second == {"prompt": prompt, "chosen": said("a4"), "rejected": said("a5")}
    german = {"prompt": said("de"), "chosen": said("a_de0"), "rejected": said("a_de1")}
    assert read_pairs(path, language="de") == [german]
    with pytest.raises(InputError, match=r"oasst2\.jsonl: no examples were found"):
        read_rows(path, language="fr")


def test_useless_rows_of_public_data_are_left_out(tmp_path: Path, capsys) -> None:
    """UltraFeedback has the same answer twice, and empty ones; one's own data may not."""
    row = PAIRS["ultrafeedback"][0]
    lines = [
        row,
        row | {"rejected": row["chosen"]},
        row | {"chosen": [ASKED, say("assistant", "")]},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert len(read_pairs(path)) == 1
    said = f"skipped 2 of 3 rows. The first error: {path}, line 2: 'chosen' and"
    assert said in capsys.readouterr().out
    path.write_text(json.dumps(lines[1]))
    with pytest.raises(InputError, match=r"no row is usable.*are the same answer"):
        read_pairs(path)


def test_format_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({**ANSWERED, "messages": [ASKED, BAD]}))
    assert read_rows(path, "messages") == [{"messages": [ASKED, BAD]}]
    assert read_rows(path, "completion") == [ANSWERED]
    with pytest.raises(InputError, match=r"format=oast2: unknown choice \(did you mean 'oasst2'"):
        read_rows(path, "oast2")
    with pytest.raises(InputError, match=r"line 1: expected the keys 'query' and 'response'"):
        read_rows(path, "metamathqa")
    with pytest.raises(
        InputError, match="are those of the format completion, which only python -m finetune sft"
    ):
        read_pairs(path)
    path.write_text(json.dumps({"text": "of no format"}))
    with pytest.raises(InputError, match=r"expected the keys of one of pairs \(prompt, chosen"):
        read_pairs(path)


def test_sources_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(InputError, match=r"x\.parquet: reading the parquet file failed"):
        read_rows(tmp_path / "x.parquet")
    (tmp_path / "x.jsonl.gz").write_bytes(b"\x1f\x8bno gzip")
    with pytest.raises(InputError, match=r"x\.jsonl\.gz cannot be read"):
        read_rows(tmp_path / "x.jsonl.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no data files .* \.jsonl, \.json"):
        read_rows(tmp_path / "empty")
    DatasetDict({"first": Dataset.from_list([ANSWERED])}).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        InputError, match=r"no split is named train_sft or train\. Choose one of first with"
    ):
        read_rows(tmp_path / "saved")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"data=hf:no/such: loading from the Hub"):
        read_rows("hf:no/such")
