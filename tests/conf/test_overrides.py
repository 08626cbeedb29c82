"""Values of a command line that Hydra's grammar does not take, or takes as something else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.entry import sentence
from conf.errors import InputError
from conf.overrides import compose_command, groups_of, readable, store_schema
from data_pipeline.text.corpus import TokenizeConfig
from eval.chat.generate import GenerateConfig
from finetune.config import DpoConfig, SftConfig
from launch.plan.config import PlanConfig
from launch.slurm.settings import SlurmConfig
from pretrain.config import PretrainConfig
from pretrain.recipe import TrainingStageConfig

SCHEMAS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "tokenize": TokenizeConfig,
    "generate": GenerateConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "plan": PlanConfig,
    "slurm": SlurmConfig,
}


def composed(config: str, *arguments: str) -> Any:
    """Composes a command line."""
    schema = SCHEMAS[config]
    store_schema(config, schema)
    made = readable(list(arguments), config, schema)
    return compose_command(config, made)


TEXTS = [
    "runs/lr=3e-4", "par(1)", "日本", "a#b", "~/x", "It's me", "{a}", "{a:1}", "a,b", "[a]", "1e3",
    "0123", "1_000", "true", "12:30:00", "Hello! How are you?", 'say "hi"', "a\\b", "'", "x y",
    "def main(", "[def main(]", "(x)", "a:b", "s3://a/b?c=d&e=f", "-1", "1.0", "%x", "a]b", "null!",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_as_it_is(text):
    assert composed("pretrain", f"run_dir={text}").run_dir == text
    assert composed("generate", f"prompts_file={text}").prompts_file == text


def test_quoted_and_special_values_keep_their_meaning():
    def run_dir(text):
        return composed("pretrain", f"run_dir={text}").run_dir

    assert run_dir("'a=b'") == run_dir('"a=b"') == "a=b"
    assert run_dir("${recipe.name}/x") == "demo/x"
    assert composed("generate", "out=null").out is None
    kept = ["--multirun", "seed=1,2", "run_dir=a,b", "model=a,b"]
    assert sorted(readable(kept, "pretrain", PretrainConfig)) == sorted(kept)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("[def main(]", ["def main("]),
        ('["def main("]', ["def main("]),
        ("[Hello! How are you?]", ["Hello! How are you?"]),
        ("[It's me]", ["It's me"]),
        ("[介绍一下你。]", ["介绍一下你。"]),
        ("[a=b, c(1), '日, 本']", ["a=b", "c(1)", "日, 本"]),
        ("[1e3,0123,true,null!]", ["1e3", "0123", "true", "null!"]),
        ("[x[0] = {}]", ["x[0] = {}"]),
        ("[]", []),
        ("[a,b]", ["a", "b"]),
    ],
)
def test_a_list_of_texts(given, expected):
    assert list(composed("generate", f"prompts={given}").prompts) == expected


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("recipe.stages.long.tokens", "1e6", 1_000_000),
        ("seed", "1e3", 1000),
        ("seed", "2.56e2", 256),
        ("seed", "1_000", 1000),
        ("seed", "12.0", 12),
    ],
)
def test_a_whole_number_may_have_an_exponent(key, text, expected):
    found = OmegaConf.select(composed("pretrain", f"{key}={text}"), key)
    assert (found, type(found)) == (expected, int)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("seed=1M", r"seed=1M: not a number\. Write seed=1_000_000\."),
        ("recipe.stages.long.tokens=2.5B", r"Write recipe\.stages\.long\.tokens=2_500_000_000\."),
        ("seed=1,000,000", r"seed=1,000,000: not a number\. Write seed=1_000_000\."),
        ("seed=1.5", r"seed=1\.5: expected an integer\."),
        ("seed=1e-3", r"seed=1e-3: expected an integer\."),
        ("seed=x(", r"seed=x\(: expected an integer\."),
        ("optim.learning_rate=1/3)", r"optim\.learning_rate=.*: expected a number\."),
        ("health.tell=a=b", r"health\.tell is not a key of this config"),
        (
            "run_dir.x=1",
            r"run_dir\.x is not a key of this config, because run_dir is a single value\.",
        ),
        ("allow_change=[a", r"expected the form allow_change=\[a,b\]\."),
        (
            "recipe.stages.lon.tokens=1",
            r"recipe\.stages\.lon does not exist \(did you mean 'long'",
        ),
        (
            "recipe.stages.more.tokens=1",
            r"begin its keys with \+, as in \+recipe\.stages\.more\.tokens=",
        ),
        (
            "recipe.stages.long.fim.code.share=0.5",
            r"begin its keys with \+, as in \+recipe\.stages\.long\.fim\.code\.share=",
        ),
        (
            "recipe.stages.lon.fim.code.share=0.5",
            r"recipe\.stages\.lon does not exist \(did you mean 'long'",
        ),
    ],
)
def test_what_is_refused(argument, words):
    with pytest.raises((InputError, OmegaConfBaseException, HydraException)) as caught:
        composed("pretrain", argument)
    error = caught.value  # as the command line says it
    said = str(error) if isinstance(error, InputError) else sentence(error, PretrainConfig)
    assert re.search(words, said)


def test_an_entry_within_an_entry_is_added_by_its_keys():
    added = "+recipe.stages.more.fim.code.share=0.5"
    stage = ("+recipe.stages.more.seq_len=512", "+recipe.stages.more.tokens=1e6")
    for arguments in ((added, *stage), (*stage, added)):
        found = composed("pretrain", *arguments).recipe.stages["more"]
        assert (found.seq_len, found.tokens) == (512, 1_000_000)
        assert {name: fim.share for name, fim in found.fim.items()} == {"code": 0.5}


def test_a_key_within_the_name_of_a_file():
    with pytest.raises(InputError, match=r"cluster is a single value \(did you mean 'time'\?\)"):
        composed("slurm", "cluster.slurm.time=1:00:00")


def every_group() -> Iterator[tuple[str, str]]:
    for config in SCHEMAS:
        for group, choices in groups_of(config).items():
            if "null" not in choices:
                yield config, group


@pytest.mark.parametrize(("config", "group"), list(every_group()))
@pytest.mark.parametrize("value", ["null", "false", "7", "1.5", ""])
def test_no_choice_of_a_group(config, group, value):
    with pytest.raises(InputError, match=rf"{group}={value}: unknown choice \(known: \w+"):
        composed(config, f"{group}={value}")


@pytest.mark.parametrize("config", ["sft", "dpo"])
def test_the_printed_default_of_tuning(config):
    tuning = "danube_sft" if config == "sft" else "danube_dpo1"
    assert composed(config, "tuning=null") == composed(config)
    assert composed(config, f"tuning={tuning}", "tuning=null") == composed(config)
    assert composed(config, f"tuning={tuning}") != composed(config)
    with pytest.raises(InputError, match="tuning=false: unknown choice"):
        composed(config, "tuning=false")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["={web:1}"], {"web": 1}),
        (["={web:1,code:0.5}"], {"web": 1, "code": 0.5}),
        (["=web:1", "=code:0.5"], {"web": 1, "code": 0.5}),  # as bash expands the line above
        (["=null"], {}),
        (["={}"], {}),
        ([".web=1"], {"code": 0.7, "prose": 0.3, "web": 1}),
        (["=web:1", ".other=2"], {"web": 1, "other": 2}),
    ],
)
def test_a_mixture(arguments, expected):
    """A whole mixture replaces the recipe's, a single entry is added to it."""
    words = [f"recipe.stages.long.mixture{argument}" for argument in arguments]
    stages = composed("pretrain", "recipe=demo", *words).recipe.stages
    assert stages.long.mixture == expected
    assert stages.short.mixture == {"code": 0.75, "prose": 0.25}


@pytest.mark.parametrize(
    "arguments",
    [
        [".seq_len=128", ".tokens=4096", ".mixture={code:1}"],
        ["={seq_len:128,tokens:4096,mixture:{code:1}}"],
        ["=seq_len:128", "=tokens:4096", "=mixture:{code:1}"],
    ],
)
def test_a_stage_of_ones_own(arguments):
    words = [f"+recipe.stages.more{argument}" for argument in arguments]
    recipe = composed("pretrain", *words).recipe
    assert list(recipe.stages) == ["short", "long", "more"]
    more = recipe.stages.more
    assert (more.seq_len, more.tokens, more.mixture) == (128, 4096, {"code": 1})
    assert set(more) == {field.name for field in fields(TrainingStageConfig)}


def test_a_source_of_ones_own():
    sources = composed("tokenize", "corpus=jsonl", "+corpus.sources.more.paths=[/data/par(1)]")
    assert list(sources.corpus.sources) == ["web", "more"]
    assert sources.corpus.sources.more.paths == ["/data/par(1)"]


def test_numbers_of_files_with_an_exponent():
    with pytest.raises(Exception, match="Integer") as caught:
        OmegaConf.merge(OmegaConf.structured(PretrainConfig), {"seed": 1e6 + 0.0})
    said = sentence(caught.value, PretrainConfig)
    assert said == "seed=1000000.0: expected an integer. Write seed=1_000_000."
