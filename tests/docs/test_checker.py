"""The checker of the docs finds each kind of error, in pages with errors made by hand."""

from __future__ import annotations

import pytest

from tests.docs.checker import MAKES, READS, Checker, kind_of
from tests.docs.composing import STAGES, composed
from tests.docs.extract import command_lines, header_lines, strays

SMALL = "model=demo_12m optim=adamw_demo"
RUN = f"-m pretrain {SMALL}"
SFT = "python -m finetune sft model=runs/demo/export/pretrained data=mine/train.jsonl out=chat"
PAIRS = "python -m data_pipeline pairs corpus=data/python_docs out=mine"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"python {RUN} optim.lerning_rate=1", "optim.lerning_rate is not a key of this config"),
        (
            f"torchrun --nproc-per-node 2 {RUN} parallel.micro_batch_tokens=1000",
            "micro_batch_tokens=1000: expected a multiple of",
        ),
        (f"torchrun --nproc-per-node 6 {RUN} parallel.tp=4", "the number of processes, 6"),
        (
            f"sbatch --nodes=2 launch/slurm/pretrain.sbatch {SMALL} parallel.tp=3",
            "the number of processes, 16",
        ),
        (
            f"python -m launch local nproc=8 -- {SMALL} parallel.cp=3",
            "cp=3 x tp=1 does not match",
        ),
        (
            f"python -m launch slurm cluster=h100 -- {SMALL} parallel.tp=3",
            "the number of processes, 8",
        ),
        (
            f"python {RUN} model.vocab_size=1000",
            "model.vocab_size=1000: expected 8192 or more",
        ),
        (SFT, "data=mine/train.jsonl: nothing of the repository, no command before it on the page"),
        ("python -m eval chat model=tuned < questions.txt", "questions.txt: No such file"),
        ("python -m eval generate model=runs/demo prompts=def main(", "syntax error near"),
        ("python -m eval generate model=runs/demo/export/tuned 'prompts=[a", "unexpected EOF"),
        ("python -m eval generat model=runs/demo", "unknown command 'generat'"),
        ("python -m launch slurm cluster=mine.yaml", "cluster=mine.yaml: mine.yaml does not exist"),
        ("torchrun --nprocs 2 -m pretrain", "torchrun does not take"),
        ("make dmeo", "make dmeo: the Makefile has no such target"),
        ('pip install -e ".[cleen]"', "setup.py has no extra cleen"),
        ("python benchmarks/gpu_training.py --tinny", "gpu_training.py has no option --tinny"),
        ("python -m tests.faults.matriks", "tests/faults/matriks/__main__.py does not exist"),
        ("git clone x", "git: nothing here knows how to check it"),
    ],
)
def test_a_fault_is_found(line, said, page_folder):
    wrong = Checker(page_folder).page("x.md", f"# Title\n\n```\n{line}\n```\n")
    assert len(wrong) == 1
    assert wrong[0].startswith(f"x.md:4: {line}")
    assert said in wrong[0]


def test_what_a_command_before_it_made_is_there(page_folder):
    page = f"| `{PAIRS}` | makes |\n\n```bash\n{SFT}\n```\n"
    checker = Checker(page_folder)
    assert checker.page("x.md", page) == []
    assert checker.checked == 2


def test_the_order_counts(page_folder):
    assert len(Checker(page_folder).page("x.md", f"`{SFT}`, after `{PAIRS}`")) == 1


def test_own_and_exempt_are_told_when_they_are_met(page_folder):
    own = {"mine": None, "yours": None}
    checker = Checker(page_folder, own, {"python -m pretrain ...": "a form"})
    assert checker.page("x.md", f"`{SFT}` and `python -m pretrain ...`") == []
    assert checker.used == {"mine", "python -m pretrain ..."}


def test_lines_are_joined_and_placed():
    page = (
        "text `make test`\n\n```\npython -m a \\\n  b=1 \\\n  c=2\n# no\ntorchrun -m b\n```\n`x`\n"
    )
    found = command_lines("x.md", page)
    assert [(c.line, c.text) for c in found] == [
        (1, "make test"),
        (4, "python -m a \\\n  b=1 \\\n  c=2"),
        (8, "torchrun -m b"),
    ]
    assert strays(page, found) == []
    assert found[0].inline


@pytest.mark.parametrize(
    "text",
    [
        "    python -m pretrain model=x\n",
        "Run python -m pretrain now.\n",
        "```\n$ torchrun --nproc-per-node 2 -m pretrain\n```\n",
        "`cd x && make demo`\n",
        "`X=1 pip install x`\n",
    ],
)
def test_a_command_that_would_be_missed_is_told(text):
    assert strays(text, command_lines("x.md", text))


def test_examples_of_a_head_are_those_that_are_indented():
    head = "# python -m pretrain: it\n#     python -m pretrain a=1 \\\n#         b=2\nname: x\n"
    assert [c.text for c in header_lines("x.yaml", head)] == ["python -m pretrain a=1 \\\nb=2"]


def test_it_is_known_what_every_command_reads():
    import importlib

    kinds = set()
    for stage in STAGES:
        for command in importlib.import_module(f"{stage}.__main__").COMMANDS.values():
            module, _, name = command.schema.partition(":")
            same = name == "InspectConfig"
            kinds.add(f"{module.split('.')[0]} {name}" if same else name)
    assert kinds == READS.keys()
    assert kinds >= MAKES.keys()


def test_a_sweep_is_all_of_its_points(page_folder):
    found = composed("pretrain", ["--multirun", "seed=1,2", "model=demo_12m"])
    assert [settings.seed for settings in found] == [1, 2]
    assert kind_of(found[0]) == "PretrainConfig"
