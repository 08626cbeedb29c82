"""The dtype that a model computes in, and its record in the outputs of commands."""

import dataclasses
import json
import shutil

import pytest
import torch

from conf.errors import InputError
from conf.machine import Processor
from eval import devices
from eval.chat.generate import GenerateConfig, generate
from eval.devices import resolve_dtype, stored_dtype
from eval.load_model import load_model
from eval.scores import harness
from eval.scores.config import LmEvalConfig
from eval.scores.perplexity import PerplexityConfig, perplexity
from eval.scores.results import computed_in, load_results, scores_table
from tests.corpora import read_json_lines

AVX2 = Processor("cpu", "AMD EPYC 7763", frozenset({"avx", "avx2"}))
ZEN4 = Processor("cpu", "AMD EPYC 9654", frozenset({"avx2", "avx512f", "avx512_bf16"}))


@pytest.fixture
def on(monkeypatch):
    """Pretends that this machine has another processor."""

    def on(found: Processor) -> None:
        monkeypatch.setattr(devices, "processor", lambda device: found)

    return on


@pytest.fixture(scope="module")
def bf16_model(chat_model, tmp_path_factory):
    """`chat_model` as an export stores it."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("bf16") / "chat"
    shutil.copytree(chat_model, folder)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def test_bf16_weights_are_computed_in_float32_where_the_cpu_has_no_units(on, bf16_model, capsys):
    on(AVX2)
    assert resolve_dtype("auto", bf16_model, "cpu", "models.x") == "float32"
    assert capsys.readouterr().err == (
        f"models.x={bf16_model}: the weights are stored in bfloat16 and computed in float32: "
        "this CPU has no bf16 units (AVX2 at best).\n"
    )
    on(ZEN4)
    assert resolve_dtype("auto", bf16_model, "cpu") == "bfloat16"
    assert capsys.readouterr().err == ""


def test_float32_weights_stay_float32(on, model):
    for found in (AVX2, ZEN4):
        on(found)
        assert resolve_dtype("auto", model, "cpu") == "float32"


def test_an_explicit_dtype_is_used_with_a_warning(on, bf16_model, capsys):
    on(AVX2)
    assert resolve_dtype("bfloat16", bf16_model, "cpu") == "bfloat16"
    said = capsys.readouterr().err
    assert said.startswith("warning: dtype=bfloat16: this CPU has no bf16 units (AVX2 at best)")
    assert "(measured: " in said
    on(ZEN4)
    assert resolve_dtype("float32", bf16_model, "cpu") == "float32"
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="dtype=half: unknown choice"):
        resolve_dtype("half", bf16_model, "cpu")


def test_stored_dtype_comes_from_the_config_or_the_weights(bf16_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(bf16_model, folder)
    assert stored_dtype(folder) == "bfloat16"
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    path.write_text(json.dumps({**config, "torch_dtype": "float16"}))  # as older folders name it
    assert stored_dtype(folder) == "float16"
    path.write_text(json.dumps(config))
    assert stored_dtype(folder) == "bfloat16"
    (folder / "model.safetensors").unlink()
    assert stored_dtype(folder) is None
    assert resolve_dtype("auto", folder, "cpu") == "auto"
    path.write_text("[")
    assert stored_dtype(folder) is None


@pytest.mark.parametrize(("found", "computed"), [(AVX2, "float32"), (ZEN4, "bfloat16")])
def test_a_loaded_model_has_the_resolved_dtype(on, bf16_model, found, computed):
    on(found)
    loaded = load_model(str(bf16_model), device="cpu")
    assert loaded.dtype == computed
    assert {str(p.dtype) for p in loaded.model.parameters()} == {f"torch.{computed}"}


def test_float32_gives_what_weights_stored_in_float32_give(on, bf16_model, tmp_path):
    """Every bf16 value is a float32 value, so only the products change."""
    from transformers import AutoModelForCausalLM

    wide = tmp_path / "wide"
    shutil.copytree(bf16_model, wide)
    AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32).save_pretrained(wide)
    on(AVX2)
    narrow, exact = (load_model(str(folder), device="cpu") for folder in (bf16_model, wide))
    ids = torch.arange(3, 40)[None]
    assert torch.equal(narrow.model(ids).logits, exact.model(ids).logits)


def test_perplexity_and_samples_record_the_dtype(on, bf16_model, named_corpus, tmp_path, capsys):
    on(AVX2)
    out = tmp_path / "perplexity.json"
    data = str(named_corpus.folder)
    perplexity(PerplexityConfig(str(bf16_model), data, 96, 2000, device="cpu", out=str(out)))
    assert json.loads(out.read_text())["computed_in"] == "float32"
    assert "computed in float32" in " ".join(capsys.readouterr().out.split())
    rows = tmp_path / "rows.jsonl"
    generate(GenerateConfig(str(bf16_model), ["a"], max_new_tokens=2, device="cpu", out=str(rows)))
    assert [row["computed_in"] for row in read_json_lines(rows)] == ["float32"]


@pytest.mark.slow
def test_lm_eval_records_the_dtype_and_rescores_on_another_machine(
    on, bf16_model, tasks, tmp_path, monkeypatch
):
    config = LmEvalConfig(
        models={"mine": str(bf16_model)},
        task_folder=str(tasks),
        out=str(tmp_path / "results.json"),
        device="cpu",
        limit=2,
    )
    scored = []
    score = harness.score_model

    def watched(*arguments):
        scored.append(arguments[-1])
        return score(*arguments)

    monkeypatch.setattr(harness, "score_model", watched)
    for found, computed in ((AVX2, "float32"), (AVX2, "float32"), (ZEN4, "bfloat16")):
        on(found)
        harness.lm_eval(dataclasses.replace(config))
        results = load_results(tmp_path / "results.json")
        assert results["models"]["mine"]["settings"]["computed_in"] == computed
        assert str(scores_table(results).title).endswith(f"computed in {computed}")
    assert scored == ["float32", "bfloat16"]


def test_models_with_several_dtypes_are_listed():
    def of(**types):
        models = {name: {"settings": {"computed_in": kind}} for name, kind in types.items()}
        return {"models": models | {"old": {"settings": {}}}}

    both = of(a="float32", b="bfloat16", c="float32")
    assert computed_in(both) == ", computed: a, c in float32; b in bfloat16"
    assert computed_in(of(a="float32")) == ", computed: a in float32"
    assert computed_in(of()) == ""
