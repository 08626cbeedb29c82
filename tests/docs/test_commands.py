"""Every command line of README and docs works.

It is split like bash does, composed by Hydra, put through the checks that `pretrain` and `launch`
make, and finds what it reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.checker import Checker
from tests.docs.extract import command_lines, header_lines

Paths = dict[str, str | None]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PAGES += ["launch/slurm/README.md", "benchmarks/README.md"]
WEB: Paths = {"data/web": "corpus:web@32000"}
LONG: Paths = {"data/long_context": "corpus:long,short", "/data/books": None}
PAIRS: Paths = {"pairs.jsonl": "conversations"}
TEXT: Paths = {"/data/web": None, "tokenizer.json": "tokenizer"}
SHARDS: Paths = {"/data/pile": None, "tokenizer.json": "tokenizer"}
RUNS: Paths = {"runs/one": "run", "runs/other": "run"}
RATED: Paths = {"good.jsonl": "file", "bad.jsonl": "file"}
OURS: Paths = {"my.yaml": "cluster"}
LITGPT: Paths = {"litgpt/final": "folder"}
URL: Paths = {"s3://bucket/web": None}
ANSWERS: Paths = {"answers.jsonl": "conversations", "preferences.jsonl": "preferences"}
OWN: dict[str, Paths] = {
    "README.md": WEB,
    "docs/branches.md": OURS | {"models/large": "model"},
    "docs/chat.md": {"questions.txt": "file"},
    "docs/chat_templates.md": PAIRS,
    "docs/check_data.md": {"/data/web": None},
    "docs/checkpoints.md": {"s3://bucket/run": None},
    "docs/cleaning.md": TEXT | RATED,
    "docs/commands.md": SHARDS | RATED | RUNS | OURS | URL | LITGPT | {"/data/web": None},
    "docs/continue.md": LITGPT
    | {"smollm2": "model", "notes": "folder", "questions.jsonl": "conversations"},
    "docs/data.md": {"/data/crawl": None},
    "docs/finetune.md": PAIRS | {"oasst2.jsonl.gz": "file"},
    "docs/growing_corpora.md": WEB | {"/data/web": None, "/data/new": None},
    "docs/health.md": RUNS,
    "docs/import_shards.md": SHARDS | {"/data/web": None, "/data/books": None},
    "docs/large_corpora.md": TEXT | {"/shared/text": None},
    "docs/long_context.md": LONG | {"base": "model", "base/tokenizer.json": "tokenizer"},
    "docs/plan.md": WEB,
    "docs/remote_data.md": {"s3://bucket/corpus": None},
    "docs/report.md": {"runs/low": "run", "runs/high": "run"},
    "docs/slurm.md": WEB | OURS | ANSWERS | {"/data/web": None, "runs/mine": "run"},
    "docs/sky.md": OURS | URL | {"/data/web": None, "runs/mine": "run"},
    "docs/studies.md": {"my.yaml": "study_file", "my_cluster.yaml": "cluster"},
    "docs/tuning_data.md": PAIRS,
    "launch/slurm/README.md": WEB | {"text": "folder"},
    "conf/command/chain.yaml": OURS | ANSWERS | {"/data/web": None},
    "conf/command/plan.yaml": OURS | WEB,
    "conf/command/plan_data.yaml": {"/data/web": None},
    "conf/command/sky.yaml": OURS | URL,
    "conf/command/slurm.yaml": OURS | WEB,
    "conf/command/stop.yaml": {"runs/mine": "run"},
    "conf/command/study.yaml": {"my.yaml": "study_file"},
}
"""The reader's own files per page, with the kind of stand-in; None for a path elsewhere."""
FORM = "python -m <folder> <command> key=value ..."
EXTENDED = (
    "python -m pretrain model=demo_12m model.architecture=ministral model.window_pattern=LG "
    "optim=lion objective=log_z_cap logger=[files,csv]"
)
EXEMPT: dict[str, dict[str, str]] = {
    "README.md": {FORM: "the form of all commands"},
    "docs/commands.md": {FORM: "the form of all commands"},
    "docs/cleaning.md": {"pip install spacy": "a package that we do not pin: word_tokenizer=spacy"},
    "docs/extend.md": {
        EXTENDED: "needs the examples of the page: test_extend.py runs it with them"
    },
    "docs/pretrain.md": {"pip install mlflow-skinny": "conflicts with a package that we pin"},
    "docs/sky.md": {"pip install skypilot": "an environment of the reader's own"},
    "docs/slurm.md": {"scontrol update JobId=... StartTime=now": "SLURM's own, for a job's number"},
}
"""Commands that are not tried, with the reason."""
AT_LEAST = 210
"""Number of commands on all pages and in `--help`; fewer means that some are not found."""


def heads() -> Iterator[tuple[str, str]]:
    """Yields the configs of the commands, whose first comments `--help` shows."""
    for path in sorted((ROOT / "conf/command").glob("*.yaml")):
        yield f"conf/command/{path.name}", path.read_text()


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page != "README.md")) for page in PAGES],
)
def test_the_commands_of_a_page_work(page, page_folder):
    own, exempt = OWN.get(page, {}), EXEMPT.get(page, {})
    checker = Checker(page_folder, own, exempt)
    text = (ROOT / page).read_text()
    wrong = checker.page(page, text)
    assert not wrong, "\n".join(wrong)
    assert checker.checked == sum(c.text not in exempt for c in command_lines(page, text))
    assert checker.used == own.keys() | exempt.keys(), "declared, and not met on the page"


def test_the_examples_of_help_work(demo, tmp_path):
    for name, text in heads():
        found = header_lines(name, text)
        if found:
            folder = shutil.copytree(demo, tmp_path / Path(name).stem)
            checker = Checker(folder, OWN.get(name, {}))
            wrong = checker.page(name, "", found)
            assert not wrong, "\n".join(wrong)
            assert checker.used == OWN.get(name, {}).keys(), name


def test_all_of_them_are_counted():
    found = [c for page in PAGES for c in command_lines(page, (ROOT / page).read_text())]
    found += [c for name, text in heads() for c in header_lines(name, text)]
    assert len(found) >= AT_LEAST
