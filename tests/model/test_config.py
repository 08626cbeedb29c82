"""Impossible decoders are refused by name."""

import pytest

from conf.errors import InputError
from tests.model.shapes import tiny


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": 7}, "model.hidden_size=96: expected a multiple of model.num_heads=7"),
        ({"num_kv_heads": 3}, "model.num_heads=4: expected a multiple of model.num_kv_heads=3"),
        ({"head_dim": 15}, "model.head_dim=15: expected an even number"),
        ({"sliding_window": 0}, "model.sliding_window=0"),
        ({"architecture": "gpt2"}, "model.architecture=gpt2"),
        ({"architecture": "llama"}, "model.sliding_window=17: model.architecture=llama"),
        ({"init": "zeros"}, "model.init=zeros"),
    ],
)
def test_impossible_shapes_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny(**changes)


def test_head_dim_is_derived():
    assert tiny().head_dim == 24


def test_inspect_prints_the_exact_count(command):
    done = command("model", "inspect", "model=danube_1_8b", "seq_len=2048")
    assert done.returncode == 0
    assert "1,831,201,280" in done.stdout
    assert "11.250 G" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["inspect", "model.hiden_size=3"],
            "model.hiden_size is not a key of this config (did you",
        ),
        (["inspect", "model.hidden_size=wide"], "model.hidden_size: value 'wide'"),
        (["inspect", "model=danube_1b"], "model=danube_1b: unknown choice"),
        (["inspect", "seq_len=99999"], "seq_len=99999: expected 1 to 16384"),
        (["inspct"], "unknown command 'inspct' (did you mean 'inspect'?)"),
    ],
)
def test_bad_arguments_end_with_one_sentence_and_code_2(command, arguments, sentence):
    done = command("model", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: " + sentence)
    assert done.stderr.count("\n") == 1
