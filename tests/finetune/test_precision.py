"""`precision=auto` of tuning: what it becomes, that processes agree, and what a restart keeps."""

import json

import pytest
from transformers import AutoConfig

from conf.machine import Processor, Verdict, fitting_precision, processor
from finetune import precision as precision_module
from finetune import run as run_module
from finetune import sft as sft_module
from finetune.checkpoints import last_checkpoint, recorded_precision
from finetune.precision import choose_precision
from tests.finetune.test_resume import stopped_at

AVX2 = Processor("cpu", "AMD EPYC 7763", frozenset({"avx", "avx2"}))
ZEN4 = Processor("cpu", "AMD EPYC 9654", frozenset({"avx2", "avx512f", "avx512_bf16"}))
YES, NO = Verdict(True, "it has units"), Verdict(False, "it has none")


def test_processes_take_what_all_of_them_multiply():
    assert choose_precision([YES, YES], None) == (
        "bf16",
        "precision=auto selects bf16: it has units.",
    )
    assert choose_precision([YES, NO], None) == (
        "fp32",
        "precision=auto selects fp32: it has none.",
    )


@pytest.mark.parametrize("made_with", ["bf16", "fp32"])
def test_a_restart_keeps_what_it_was(made_with):
    for verdict in (YES, NO):
        found, reason = choose_precision([verdict], made_with)
        assert found == made_with
        other = verdict.native == (made_with == "fp32")
        assert ("a new run on this machine would use" in reason) == other


@pytest.mark.slow
def test_a_tuning_moves_to_another_machine(settings, tmp_path, monkeypatch, capsys):
    config = settings(precision="auto", checkpoint_every=2, max_steps=4)
    monkeypatch.setattr(precision_module, "processor", lambda device: AVX2)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train", stopped_at(3))
        with pytest.raises(KeyboardInterrupt):
            sft_module.sft(config)
    checkpoint = last_checkpoint(tmp_path / "chat.tmp")
    assert checkpoint is not None
    assert recorded_precision(checkpoint) == "fp32"
    assert "precision=auto selects fp32: this CPU has no bf16 units" in capsys.readouterr().out

    monkeypatch.setattr(precision_module, "processor", lambda device: ZEN4)
    sft_module.sft(config)
    said = capsys.readouterr().out
    assert "precision=auto keeps fp32, the precision at the run's last start, but a new run" in said
    assert json.loads((tmp_path / "chat" / "sft.json").read_text())["precision"] == "fp32"
    assert "| precision | fp32 |" in (tmp_path / "chat" / "README.md").read_text()
    # What is stored is of the type that the model came in.
    assert str(AutoConfig.from_pretrained(tmp_path / "chat").dtype) == "torch.bfloat16"
    assert "precision" not in {path.name for path in (tmp_path / "chat").iterdir()}


def test_two_processes_and_the_switch_of_onednn(settings, command, tmp_path):
    config = settings()
    options = [f"model={config.model}", f"data={config.data}", "device=cpu", "max_steps=2"]
    out = tmp_path / "auto"
    done = command("finetune", "sft", *options, f"out={out}", processes=2)
    assert done.returncode == 0, done.stderr
    here = fitting_precision(processor("cpu"))
    assert json.loads((out / "sft.json").read_text())["precision"] == here
    assert done.stdout.count("precision=auto selects") == 1

    out = tmp_path / "avx2"
    slow = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = command("finetune", "sft", *options, f"out={out}", "precision=bf16", **slow)
    assert done.returncode == 0, done.stderr
    assert "warning: precision=bf16: " in done.stdout
    assert "times slower than in float32 (measured: " in done.stdout
    assert json.loads((out / "sft.json").read_text())["precision"] == "bf16"
