"""`python -m finetune sft` on a tiny model: what it learns, writes and skips."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from conf.errors import InputError
from conf.model_card import CardConfig
from finetune.prepare import build_trainer, check_labels, load
from finetune.rows import read_rows
from finetune.sft import sft
from finetune.tokens import IGNORED, tokenize
from tests.finetune.conftest import load_template

pytestmark = pytest.mark.slow


def lines(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == kind]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base: Path, pairs: Path) -> Path:
    """A tuned folder made from the command line."""
    from tests.conftest import fresh_command

    out = tmp_path_factory.mktemp("made") / "chat"
    done = fresh_command(
        "finetune",
        "sft",
        f"model={base}",
        f"data={pairs}",
        f"out={out}",
        "device=cpu",
        "precision=fp32",
        "learning_rate=1e-2",
        "epochs=4",
        "log_every=7",
        "repetition_penalty=1.1",
    )
    assert done.returncode == 0, done.stderr
    assert "20 steps on 40 conversations" in done.stdout
    assert done.stderr == ""
    return out


def test_learns(made: Path) -> None:
    losses = [line["loss"] for line in lines(made)]
    assert abs(losses[0] - math.log(512)) < 0.3
    assert losses[-1] < losses[0] - 1.5
    assert [line["step"] for line in lines(made)] == [1, 7, 14, 20]
    assert [line["event"] for line in lines(made, "event")] == ["start", "finish"]


def test_result_is_a_stock_folder(made: Path, base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.repetition_penalty == 1.1
    assert tokenizer.chat_template == load_template("danube").template
    added = {
        "generation_config.json": {"repetition_penalty": 1.1},
        # What transformers 4 reads, which would take its defaults without.
        "config.json": {"rope_theta": 100_000.0, "torch_dtype": "bfloat16"},
    }
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        before = json.loads((base / name).read_text()) | added.get(name, {})
        assert json.loads((made / name).read_text()) == before
    settings = json.loads((made / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    assert json.loads((made / "special_tokens_map.json").read_text()) == named
    assert named.items() <= settings.items()
    chat = [{"role": "user", "content": "What does dedent(text) do?"}]
    answer = pipeline("text-generation", model=model, tokenizer=tokenizer)(chat, max_new_tokens=4)
    assert answer[0]["generated_text"][-1]["role"] == "assistant"
    assert "last loss" in (made / "README.md").read_text()
    assert sorted(path.name for path in made.parent.iterdir()) == ["chat"]
    record = json.loads((made / "sft.json").read_text())
    assert (record["model"], record["data"]) == ("base", "pairs.jsonl")
    for path in made.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text()
            assert not any(str(folder.parent) in text for folder in (made, base)), path


def test_a_model_keeps_its_template_and_its_ends(settings, base: Path, tmp_path, capsys) -> None:
    own = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    model = tmp_path / "own"
    shutil.copytree(base, model)
    (model / "chat_template.jinja").write_text(own)
    generation = json.loads((model / "generation_config.json").read_text())
    ends = generation | {"eos_token_id": [2, 7]}
    (model / "generation_config.json").write_text(json.dumps(ends))
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    card = CardConfig(base_model="owner/own", datasets=["owner/pairs"])
    config = settings(model=str(model), chat_template=None, card=card, max_steps=1)
    sft(config)
    assert "replaces" not in capsys.readouterr().out
    made = Path(config.out)
    assert (made / "chat_template.jinja").read_text() == own
    assert json.loads((made / "generation_config.json").read_text())["eos_token_id"] == [2, 7]
    assert json.loads((made / "sft.json").read_text())["chat_template"] == "own"
    data = ModelCard((made / "README.md").read_text()).data.to_dict()
    assert (data["license"], data["base_model"]) == ("mit", "owner/own")
    assert data["datasets"] == ["owner/pairs"]


def test_the_same_inputs_are_done_already(settings, capsys) -> None:
    config = settings(max_steps=1)
    sft(config)
    before = Path(config.out, "sft.json").stat().st_mtime_ns
    sft(config)
    assert "is up to date" in capsys.readouterr().out
    assert Path(config.out, "sft.json").stat().st_mtime_ns == before


def test_other_inputs_need_overwrite(settings) -> None:
    sft(settings(max_steps=1))
    with pytest.raises(
        InputError, match=r"a model from other inputs already exists there\. Choose"
    ):
        sft(settings(max_steps=2))
    sft(settings(max_steps=2, overwrite=True))
    record = json.loads(Path(settings().out, "sft.json").read_text())
    assert record["steps"] == 2


def test_loss_is_the_answers_mean(settings, base: Path, pairs: Path) -> None:
    """The first losses of training and validation in fp32 equal those of plain transformers."""
    sft(settings(max_steps=1, batch_size=40, validation=str(pairs)))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    total, count = 0.0, 0
    for row in tokenize(read_rows(pairs), load_template("danube"), tokenizer):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        total += F.cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum").item()
        count += int((labels[1:] != IGNORED).sum())
    mean = pytest.approx(total / count, rel=1e-5)
    assert lines(Path(settings().out))[0]["loss"] == mean
    assert lines(Path(settings().out), "validation")[0]["loss"] == mean
    shape = {"packing": True, "batch_size": 2, "max_seq_len": 256}
    sft(settings(max_steps=1, overwrite=True, validation=str(pairs), **shape))
    assert lines(Path(settings().out), "validation")[0]["loss"] == mean


@pytest.mark.parametrize("packing", [False, True])
def test_conversations_that_are_too_long_are_counted(settings, tmp_path: Path, packing) -> None:
    rows = [{"prompt": "a " * length, "completion": "b"} for length in (3, 900, 4)]
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    sft(settings(data=str(path), max_steps=1, packing=packing, batch_size=1))
    record = json.loads((Path(settings().out) / "sft.json").read_text())
    assert (record["rows"], record["left_out"]) == (2, 1)


@pytest.mark.parametrize(
    "layout", [{"micro_batch_size": 2}, {"packing": True, "batch_size": 1, "max_seq_len": 256}]
)
def test_layouts_of_a_batch_agree(settings, tmp_path: Path, pairs: Path, layout: dict) -> None:
    """The same rows padded at once, in small batches, or packed: the same loss and gradient."""
    few = tmp_path / "few.jsonl"
    rows = sorted(pairs.read_text().splitlines(), key=len)[:6]
    few.write_text("\n".join(rows))
    first = {}
    for name, extra in {"whole": {"batch_size": 6}, "other": {"batch_size": 6} | layout}.items():
        out = tmp_path / name
        sft(settings(data=str(few), out=str(out), max_steps=1, **extra))
        first[name] = lines(out)[0]
    assert first["other"]["tokens"] == first["whole"]["tokens"]
    for key in ("loss", "grad_norm"):
        assert first["other"][key] == pytest.approx(first["whole"][key], rel=1e-4), key


def test_two_processes_give_one_process_curve(settings, command, tmp_path: Path) -> None:
    sft(settings(max_steps=4, validation=settings().data, validate_every=2))
    other = tmp_path / "two"
    config = settings()
    done = command(
        "finetune",
        "sft",
        f"model={config.model}",
        f"data={config.data}",
        f"out={other}",
        "device=cpu",
        "precision=fp32",
        "learning_rate=1e-2",
        "max_steps=4",
        "log_every=1",
        f"validation={config.data}",
        "validate_every=2",
        processes=2,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps on 40 conversations") == 1
    one, two = lines(Path(config.out)), lines(other)
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    ones, twos = lines(Path(config.out), "validation"), lines(other, "validation")
    assert [line["step"] for line in twos] == [0, 2, 4]
    for a, b in zip(ones, twos, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_bf16_trains_fp32_weights(settings, tmp_path: Path) -> None:
    config = settings(precision="bf16", max_steps=2)
    base = load(Path(config.model))
    rows = read_rows(Path(config.data))
    trainer = build_trainer(config, base, rows, 1, tmp_path / "work")
    check_labels(trainer, base.tokenizer)
    trainer.train()
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(512), abs=0.3)


def test_wandb_lies_beside_the_folder(settings, command, tmp_path: Path) -> None:
    config = settings()
    done = command(
        "finetune",
        "sft",
        f"model={config.model}",
        f"data={config.data}",
        f"out={tmp_path / 'chat'}",
        "device=cpu",
        "max_steps=1",
        "logger=wandb",
        "logger.wandb=offline",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat", "wandb"]
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
