"""A run with CompleteP, from its first step to the folder that continues it (I5, I16)."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from conf.errors import InputError
from data_pipeline.sampling.batches import IGNORED, held_out_batches
from eval.report.page_run import lineage
from eval.report.run_folder import read_run
from model.network import Decoder
from model.parametrization import describe_parametrization
from pretrain.checkpoints import find, read
from pretrain.export import ExportConfig, export, read_run_config
from pretrain.initial_state import InitialWeights
from pretrain.resume_checks import check_same_model
from tests.runs import arguments, records, settings

COMPLETEP = {
    "model__parametrization": "completep",
    "model__base_hidden_size": 24,
    "model__base_num_layers": 3,
    "model__tie_embeddings": "true",
    "optim__name": "muon",
}


@pytest.fixture(scope="module")
def trained(command, corpus, tmp_path_factory):
    """A run of ten steps and its export in float32."""
    folder = tmp_path_factory.mktemp("completep")
    made = arguments(corpus.folder, folder / "run", stop_after=10, **COMPLETEP)
    done = command(*made, processes=2)
    assert done.returncode == 0, done.stderr
    export(ExportConfig(run=str(folder / "run"), out=str(folder / "out"), dtype="float32"))
    return folder


def test_its_loss_in_stock_transformers_is_the_trainers(trained, corpus):
    model = AutoModelForCausalLM.from_pretrained(trained / "out")
    last = records(trained / "run", "validation")[-1]
    assert last["step"] == 10
    for source, expected in last["sources"].items():
        total, targets = 0.0, 0
        for batch in held_out_batches(corpus, source, 64, 4, 2048):
            tokens, labels = batch.tokens.flatten(), batch.labels.flatten()
            for start, end in itertools.pairwise(sorted(set(batch.cu_seqlens.tolist()))):
                with torch.no_grad():
                    logits = model(tokens[None, start:end]).logits[0]
                total += F.cross_entropy(logits, labels[start:end], reduction="sum").item()
                targets += int((labels[start:end] != IGNORED).sum())
        assert targets == expected["tokens"]
        assert total / targets == pytest.approx(expected["loss"], rel=1e-5)


def test_a_run_continues_the_folder_with_the_weights_of_the_trainer(trained, corpus):
    config = settings(corpus.folder, trained / "continued", init_from=trained / "out", **COMPLETEP)
    initial = InitialWeights(config)
    assert initial.changes == []
    path, _ = find.checkpoint_of_step(trained / "run" / "checkpoints", "latest")
    stored = dict(read.weights(path))
    for name, parameter in Decoder(config.model).named_parameters():
        found = initial.value(name, parameter.shape)
        torch.testing.assert_close(found, stored[name], rtol=2e-7, atol=0, msg=name)


def test_another_parametrization_is_refused_by_a_resume_and_a_branch(trained, corpus):
    _, metadata = find.checkpoint_of_step(trained / "run" / "checkpoints", "latest")
    standard = settings(corpus.folder, trained / "run", model__tie_embeddings="true").model
    says = r"model\.parametrization=standard: step was trained with completep"
    with pytest.raises(InputError, match=says):
        check_same_model(metadata["model"], standard, "step")
    other = settings(corpus.folder, trained / "run", **COMPLETEP).model
    other.base_num_layers = 4
    with pytest.raises(InputError, match=r"model\.base_num_layers=4: step was trained with 3"):
        check_same_model(metadata["model"], other, "step")
    # A checkpoint of an earlier version states no parametrization: it is standard.
    old = {k: v for k, v in metadata["model"].items() if k[:4] not in ("para", "base")}
    check_same_model(old, standard, "step")


def test_card_and_report_say_it(trained, corpus):
    says = describe_parametrization(read_run_config(trained / "run").model)
    assert says.startswith("completep, base of 3 layers of 24")
    assert says in (trained / "out" / "README.md").read_text()
    assert ("parametrization", says) in lineage(read_run(trained / "run"), corpus, None, [])
