"""`python -m finetune dpo` on a tiny model: what it learns, scores, merges and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.errors import InputError
from finetune.config import DpoConfig, SftConfig
from finetune.dpo import dpo, merge
from finetune.prepare import load
from finetune.prepare_dpo import build_trainer, tokenize_pairs
from finetune.rows import read_pairs
from finetune.sft import sft
from tests.finetune.conftest import load_template

pytestmark = pytest.mark.slow


@pytest.fixture
def config(base: Path, preferences: Path, tmp_path: Path) -> DpoConfig:
    return DpoConfig(
        model=str(base),
        data=str(preferences),
        out=str(tmp_path / "chat"),
        chat_template=load_template("danube"),
        precision="fp32",
        device="cpu",
        learning_rate=1e-2,
        max_steps=4,
        log_every=1,
    )


def test_command(base: Path, preferences: Path, tmp_path: Path, command) -> None:
    """The loss starts at ln 2 and falls, the margin rises, the folder is a stock one."""
    out = tmp_path / "chat"
    options = [f"model={base}", f"data={preferences}", f"out={out}", "device=cpu"]
    options += ["tuning=danube_dpo1"]  # with gradient checkpointing
    options += ["precision=fp32", "learning_rate=1e-2", "batch_size=8", "epochs=4", "log_every=1"]
    done = command("finetune", "dpo", *options)
    assert (done.returncode, done.stderr) == (0, "")
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    lines = [record for record in records if record["kind"] == "train"]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert lines[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["loss"] < 0.5
    assert lines[-1]["reward_margin"] > 0.5
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template == load_template("danube").template
    config = json.loads((base / "config.json").read_text())
    both = {"rope_theta": 100_000.0, "torch_dtype": "bfloat16"}  # the latter for transformers 4
    assert json.loads((out / "config.json").read_text()) == config | both
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (out / "special_tokens_map.json").is_file()
    assert not list(out.glob("adapter*"))
    record = json.loads((out / "dpo.json").read_text())
    assert record["kind"] == "pairs"
    assert [record[key] for key in ("beta", "lora_rank", "lora_alpha")] == [0.2, 4, 16]
    assert (record["learning_rate"], record["schedule"]) == (0.01, "cosine")
    card = (out / "README.md").read_text()
    assert "by direct preference optimization" in card
    assert "| loss on | better against worse answers; prompts are not scored |" in card
    assert "| adapters | LoRA, rank 4, alpha 16, merged |" in card
    assert "| steps | 20 of 8 pairs |" in card


def test_two_processes_give_one_process_curve(config: DpoConfig, command, tmp_path: Path) -> None:
    """With the validation loss, and wandb in addition to the folder."""
    config.validation, config.validate_every, config.batch_size = config.data, 2, 8
    dpo(config)
    options = [f"{key}={getattr(config, key)}" for key in ("model", "data", "validation")]
    options += ["device=cpu", "precision=fp32", "learning_rate=1e-2", "max_steps=4", "batch_size=8"]
    options += ["log_every=1", "validate_every=2", "logger=wandb", "logger.wandb=offline"]
    out = tmp_path / "two" / "chat"
    done = command("finetune", "dpo", *options, f"out={out}", processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps on 40 pairs") == 1
    assert sorted(path.name for path in out.parent.iterdir()) == ["chat", "wandb"]
    assert list((out.parent / "wandb").glob("offline-run-*/run-*.wandb"))
    curves = [
        [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] != "event"]
        for path in (Path(config.out) / "metrics.jsonl", out / "metrics.jsonl")
    ]
    assert [line["step"] for line in curves[0] if line["kind"] == "validation"] == [0, 2, 4]
    for one, two in zip(*curves, strict=True):
        for key in ("loss", "reward_margin", "reward_accuracy"):
            assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4), (one["step"], key)


def test_merged_equals_base_with_adapters(config: DpoConfig, tmp_path: Path) -> None:
    base = load(Path(config.model))
    trainer: Any = build_trainer(config, base, read_pairs(Path(config.data)), 1, tmp_path / "work")
    trainer.train()
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        adapted = trainer.model.eval()(ids).logits
        with trainer.model.disable_adapter():
            before = trainer.model(ids).logits
        merge(trainer, base)
        merged = base.model(ids).logits
    assert (adapted - before).abs().max() > 1e-2
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)


def test_prompts_are_not_scored(config: DpoConfig, tmp_path: Path) -> None:
    """The mask covers the answers with their end token, and the ids before it are a server's."""
    base = load(Path(config.model))
    rows = read_pairs(Path(config.data))
    trainer: Any = build_trainer(config, base, rows, 1, tmp_path / "work")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    keys = ["chosen"] * 3 + ["rejected"] * 3
    for i, key in enumerate(keys):
        ids, mask = batch["input_ids"][i], batch["completion_mask"][i].bool()
        row = rows[i % 3]
        assert base.tokenizer.decode(ids[mask]) == row[key][0]["content"] + "</s>"
        seen = batch["attention_mask"][i].bool() & ~mask
        served: Any = base.tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=True
        )
        assert ids[seen].tolist() == served["input_ids"]


def test_chosen_may_repeat_the_conversation(tmp_path: Path, tokenizer) -> None:
    """UltraFeedback Binarized's shape and the plain one are the same pair."""
    question = {"role": "user", "content": "3 + 5?"}
    good, bad = ({"role": "assistant", "content": text} for text in ("8", "9"))
    long = {"prompt": "3 + 5?", "chosen": [question, good], "rejected": [question, bad]}
    short = {"prompt": "3 + 5?", "chosen": "8", "rejected": "9"}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(long) + "\n" + json.dumps(short))
    first, second = tokenize_pairs(read_pairs(path), load_template("danube"), tokenizer)
    assert first == second
    system = {"role": "system", "content": "Count."}
    path.write_text(json.dumps(long | {"prompt": [system, question]}))
    assert read_pairs(path)[0]["prompt"] == [system, question]


def test_pairs_that_are_too_long_are_counted(config: DpoConfig, tmp_path: Path, capsys) -> None:
    rows = [{"prompt": "a " * length, "chosen": "b", "rejected": "c"} for length in (3, 900, 4)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config.data, config.max_steps = str(path), 1
    dpo(config)
    record = json.loads((Path(config.out) / "dpo.json").read_text())
    assert (record["rows"], record["left_out"]) == (2, 1)
    assert "on 2 pairs (1 skipped, longer than max_seq_len), loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompt": "a", "chosen": "b"},
            r"expected the keys of one of pairs .* found 'prompt' and 'chosen'\.",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "'rejected' is None. Give text"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same answer"),
        (
            {"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"},
            "'chosen' ends with a user message",
        ),
    ],
)
def test_bad_pairs(config: DpoConfig, tmp_path: Path, row: dict, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(row))
    config.data = str(path)
    with pytest.raises(InputError, match=words):
        dpo(config)
    assert not Path(config.out).exists()


def test_another_template_than_the_model_s(config: DpoConfig, tmp_path: Path) -> None:
    """ChatML's tokens are added, learned and saved by sft; dpo takes no other template then."""
    tuned = tmp_path / "tuned"
    settings: dict[str, Any] = {
        "model": config.model,
        "out": str(tuned),
        "max_steps": 2,
        "device": "cpu",
    }
    rows = [{"prompt": "3 + 5?", "completion": "8."}, {"prompt": "2 + 2?", "completion": "4."}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chatml = load_template("chatml")
    sft(SftConfig(data=str(tmp_path / "rows.jsonl"), chat_template=chatml, **settings))
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    model = AutoModelForCausalLM.from_pretrained(tuned)
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == 502 <= model.config.vocab_size == 512
    with pytest.raises(InputError, match=r"chatml: the token <\|im_end\|> is not in"):
        dpo(replace(config, chat_template=chatml))
    with pytest.raises(InputError, match=r"chat_template=danube: model=.* has a different"):
        dpo(replace(config, model=str(tuned)))
    dpo(replace(config, model=str(tuned), chat_template=chatml))
    made = AutoTokenizer.from_pretrained(config.out)
    assert (made.chat_template, made.eos_token) == (chatml.template, "<|im_end|>")


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="lora_rank=0: expected a number above 0"):
        DpoConfig(lora_rank=0)
    with pytest.raises(InputError, match="packing=true: DPO does not pack pairs"):
        DpoConfig(packing=True)
