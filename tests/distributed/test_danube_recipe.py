"""Danube's four stages, thirty-two times shorter, without interruption on four processes."""

from __future__ import annotations

from tests.runs import SETTINGS, records

STEPS, BATCH = {"s2k": 28, "s4k": 4, "s8k": 4, "s16k": 4}, 4096
SEQ_LEN = {"s2k": 64, "s4k": 128, "s8k": 256, "s16k": 512}


def test_four_stages_in_one_go(warm, corpus, tmp_path):
    settings = {k: v for k, v in SETTINGS.items() if not k.startswith("recipe")} | {
        "data.folder": corpus.folder,
        "run_dir": tmp_path / "run",
        "name": "danube",
        "model.max_seq_len": 512,
        "model.sliding_window": 128,
        "recipe": "danube_1t",
        "recipe.global_batch_tokens": BATCH,
        "validation.every_steps": 0,
        "checkpoint.every_steps": 0,
    }
    for name, steps in STEPS.items():
        settings[f"recipe.stages.{name}.seq_len"] = SEQ_LEN[name]
        settings[f"recipe.stages.{name}.tokens"] = steps * BATCH
    command = ["pretrain", *(f"{key}={value}" for key, value in settings.items())]
    ended = warm.run(command, 4, tmp_path)
    assert set(ended.codes) == {0}, ended.said
    found = records(tmp_path / "run")
    assert [r["tokens"] for r in found] == [BATCH * n for n in range(1, 41)]
    assert [r["stage"] for r in found] == [name for name, n in STEPS.items() for _ in range(n)]
    for record in found:
        assert record["seq_len"] == SEQ_LEN[record["stage"]]
        assert record["samples"] * record["seq_len"] == BATCH
        assert sum(record["consumed_tokens"].values()) == record["tokens"]
    changes = [r for r in records(tmp_path / "run", "event") if r["event"] == "stage"]
    assert [(r["stage"], r["step"]) for r in changes] == [
        ("s2k", 0),
        ("s4k", 28),
        ("s8k", 32),
        ("s16k", 36),
    ]
    assert found[-1]["loss"] < found[0]["loss"] - 1
