"""Averages of checkpoints: the weights, the sum, what is refused, and what is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import sqrt

import pytest
import torch
from safetensors.torch import load_file

from conf.errors import InputError
from pretrain.averages import accumulate
from pretrain.averages.accumulate import Average
from pretrain.averages.checkpoint import MOMENTS
from pretrain.averages.members import check_same, find_members
from pretrain.averages.weighting import check_weights, weights_of
from pretrain.averages.window import Choice, Window
from pretrain.checkpoints import files
from pretrain.checkpoints.read import Tensors
from tests.corpora import byte_tokenizer, make_corpus
from tests.runs import arguments, ledger, records

STEPS = [4, 8, 12]
KEPT = {"checkpoint__every_steps": 4, "checkpoint__keep_last": 9, "validation__every_steps": 0}


@pytest.fixture(scope="module")
def run(command, corpus, tmp_path_factory):
    """A run on two processes with checkpoints after steps 4, 8 and 12, and a running average."""
    run_dir = tmp_path_factory.mktemp("averaged") / "run"
    more = KEPT | {"ema__decay": 0.5, "ema__every_steps": 2}
    done = command(*arguments(corpus.folder, run_dir, stop_after=12, **more), processes=2)
    assert done.returncode == 0, done.stderr
    return run_dir


def averaged(command, run, out, *more):
    done = command("pretrain", "average", f"run={run}", f"out={out}", *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def checkpoints(run):
    return [Tensors(run / "checkpoints" / f"step_{step}") for step in STEPS]


def plain(run, weights):
    """The average of the whole checkpoints in float64."""
    parts = [dict(one) for one in checkpoints(run)]
    return {
        name: sum(w * p[name].double() for w, p in zip(weights, parts, strict=True))
        for name in parts[0]
    }


def is_rounded(value, exact):
    """True if float32 values are the exact ones, rounded; a tie may be rounded either way."""
    return bool(((value.double() - exact).abs() <= exact.abs() * 2**-24 * (1 + 1e-6)).all())


def test_weights_by_name():
    assert weights_of("uniform", 4, 0.9) == [0.25] * 4
    assert weights_of("linear", 3, 0.9) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert weights_of("ema", 3, 0.5) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert weights_of([3, 1], 2, 0.9) == [0.75, 0.25]
    # What the changes between four checkpoints are scaled by is the decay 1 - sqrt.
    coefficients = weights_of("sqrt", 4, 0.9)
    scales = [sum(coefficients[place:]) for place in range(4)]
    assert scales == pytest.approx([1 - sqrt(place / 4) for place in range(4)])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("mean", "weights=mean: unknown choice"),
        ([1, -1], r"weights=\[1, -1\]: expected .* a list of numbers of 0 or more"),
        ([0, 0], r"weights=\[0, 0\]: expected a sum of more than 0"),
    ],
)
def test_weights_that_cannot_work_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        check_weights(weights, 0.9)
    with pytest.raises(InputError, match="2 weights for 3 checkpoints"):
        weights_of([1, 2], 3, 0.9)


def test_the_sum_is_that_of_plain_float64(run, monkeypatch):
    monkeypatch.setattr(accumulate, "PART_ELEMENTS", 1000)  # several parts per tensor
    weights = weights_of("sqrt", 3, 0.9)
    expected = plain(run, weights)
    found = dict(Average(checkpoints(run), weights))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert is_rounded(value, expected[name]), name


def test_the_exported_folder_is_the_average_and_its_card_names_the_checkpoints(
    command, run, tmp_path
):
    said = averaged(
        command, run, tmp_path / "model", "steps=[8,12]", "weights=[1,3]", "dtype=float32"
    )
    expected = plain(run, [0, 0.25, 0.75])
    for name, value in load_file(tmp_path / "model" / "model.safetensors").items():
        assert is_rounded(value, expected[name.removeprefix("model.")]), name
    card = (tmp_path / "model" / "README.md").read_text()
    listed = "2 checkpoints, weights list: run at step 12 (0.75), run at step 8 (0.25)"
    assert listed in card
    assert listed in said


def test_training_continues_from_an_averaged_checkpoint(command, corpus, run, tmp_path):
    out = tmp_path / "continued"
    averaged(command, run, out, "form=checkpoint")
    path = out / "checkpoints" / "step_12"
    expected = plain(run, [1 / 3] * 3)
    for name, value in Tensors(path):
        assert is_rounded(value, expected[name]), name
    newest = dict(Tensors(run / "checkpoints" / "step_12", MOMENTS))
    moments = dict(Tensors(path, MOMENTS))
    assert moments.keys() == newest.keys()
    assert all(torch.equal(value, newest[name]) for name, value in moments.items())
    parents = json.loads((path / "manifest.json").read_text())["parents"]
    assert [(member["run"], member["step"]) for member in parents[0]["members"]] == [
        (str(run), step) for step in (12, 8, 4)
    ]
    done = command(*arguments(corpus.folder, out, stop_after=14, **KEPT))
    assert done.returncode == 0, done.stderr
    assert "resuming after step 12" in done.stdout
    assert [line["step"] for line in ledger(out)] == list(range(1, 15))
    manifest = json.loads((out / "checkpoints" / "step_14" / "manifest.json").read_text())
    assert manifest["parents"] == parents
    assert json.loads((out / "env.json").read_text())["parents"] == parents
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    done = command(*arguments(corpus.folder, whole, stop_after=14, **KEPT))
    assert done.returncode == 0, done.stderr
    assert ledger(out) == ledger(whole)
    losses = [[r["loss"] for r in records(one)[12:]] for one in (out, whole)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)


def test_the_window_of_auto_is_judged_on_other_samples_than_it_is_chosen_by(command, run, tmp_path):
    said = averaged(command, run, tmp_path / "model", "steps=auto", "tokens=1024", "device=cpu")
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert lines[4].partition(": ")[2] in (tmp_path / "model" / "README.md").read_text()
    better = Choice([Window(1, 3.0, 3.1), Window(2, 2.9, 3.0), Window(3, 2.8, 2.95)])
    assert better.best.size == 3
    assert "last 3 checkpoints lowers the held-out loss by 0.1500, from 3.1000" in better.sentence()
    lucky = Choice([Window(1, 3.0, 3.1), Window(2, 2.9, 3.2)])
    assert lucky.best.size == 1
    assert "no average of the last 2 checkpoints has a lower" in lucky.sentence()


def test_an_export_of_the_running_average(command, run, tmp_path):
    out = tmp_path / "ema"
    done = command("pretrain", "export", f"run={run}", f"out={out}", "weights=ema", "dtype=float32")
    assert done.returncode == 0, done.stderr
    average = dict(Tensors(run / "checkpoints" / "step_12", "hooks.Ema.average."))
    exported = load_file(out / "model.safetensors")
    assert len(exported) == len(average)
    for name, value in exported.items():
        assert torch.equal(value, average[name.removeprefix("model.")]), name
    card = (out / "README.md").read_text()
    assert "moving average of 6 entries, one every 2 steps, with decay 0.5" in card


def test_checkpoints_that_cannot_be_averaged_are_refused_by_name(run, tmp_path):
    with pytest.raises(InputError, match=r"steps=\[4, 9\]: .*no checkpoint of step 9.*: 4, 8, 12"):
        find_members(str(run), [4, 9], None)
    with pytest.raises(InputError, match=r"run@4 is named twice"):
        find_members([f"{run}@4", f"{run}@4"], "latest", None)
    (one, other) = find_members([f"{run}@4", str(run)], "latest", None)
    assert [one.step, other.step] == [4, 12]
    other_run = tmp_path / "other"
    shutil.copytree(run, other_run)
    checkpoint = other_run / "checkpoints" / "step_12"
    about = files.read_manifest(checkpoint)
    about["network"]["rope_theta"] = 5000.0
    files.write_manifest(checkpoint, about)
    with pytest.raises(InputError, match=r"model.rope_theta: .*other@12 has 5000.0"):
        find_members([str(run), str(other_run)], "latest", None)
    turned = make_corpus(tmp_path / "turned", tokenizer=byte_tokenizer(turned=True))
    shutil.rmtree(other_run / "corpus")
    (other_run / "env.json").unlink()
    shutil.copytree(turned.folder, other_run / "corpus")
    with pytest.raises(InputError, match=r"its tokenizer \(.*\) is not that of"):
        find_members([str(run), str(other_run)], "latest", None)
    flipped = bytearray((run / "checkpoints" / "step_4" / "__0_0.distcp").read_bytes())
    flipped[1000] ^= 1
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "checkpoints" / "step_4" / "__0_0.distcp").write_bytes(flipped)
    with pytest.raises(InputError, match="does not match its hash"):
        find_members(str(damaged), [4, 8], None)


def test_other_shapes_are_refused_by_name(run):
    first, other = find_members(str(run), [4, 8], None)
    other.weights.shapes["norm.weight"] = torch.Size((32,))
    with pytest.raises(InputError, match=r"norm.weight: the shape in .*@8 is \[32\], and in .*@4"):
        check_same(first, other)
    smaller = replace(other, metadata={**other.metadata, "network": {"num_layers": 1}})
    with pytest.raises(InputError, match=r"model.num_layers: .*@8 has 1, and .*@4 has 2"):
        check_same(first, smaller)
