"""Takes a tiny model of a family the whole way: from training to a chat model and its scores.

Each function is a station. `tests/eval/test_family_path.py` visits them with some families,
`benchmarks/families.py` with all.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from data_pipeline.sampling.batches import IGNORED, held_out_batches
from data_pipeline.store.manifest import Manifest
from model.families import FAMILIES
from tests.corpora import byte_tokenizer, read_json_lines
from tests.model.families.cases import PATHS
from tests.model.families.parity import imported
from tests.runs import arguments, ledger, records

STEPS = 10
SETTINGS: dict[str, Any] = {
    "recipe__stages__short__tokens": 10240,
    "recipe__stages__long__tokens": 10240,
}
"""Five steps with sequences of 64 tokens and five with 128."""
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "FSDP2 x TP2": (4, {"parallel__dp_shard": 2, "parallel__tp": 2}),
    "CP2": (2, {"parallel__cp": 2}),
}
"""Processes and settings of the layouts that are compared with one process."""
Command = Callable[..., subprocess.CompletedProcess[str]]


@dataclass
class FamilyPath:
    """The stations of one family.

    Attributes:
        family: Name of the family.
        folder: Folder of all files.
        corpus: The corpus, whose held-out documents have names.
        command: Runs `python -m ...`, as several processes if asked to.
    """

    family: str
    folder: Path
    corpus: Manifest
    command: Command

    @property
    def hf_class(self) -> str:
        """The name of the family's class in transformers."""
        return FAMILIES[self.family].hf_class

    def run(self, *arguments: str, processes: int = 0) -> str:
        """Runs a command that must succeed, and returns its output."""
        done = self.command(*arguments, processes=processes)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def training(self, name: str, **changes: Any) -> list[str]:
        """Returns the command that trains the run `name`."""
        model = {
            "model__architecture": self.family,
            **{f"model__{key}": value for key, value in FAMILIES[self.family].fixed.items()},
            **{f"model__{key}": value for key, value in PATHS[self.family].items()},
        }
        changed = {key: in_hydra(value) for key, value in {**SETTINGS, **model, **changes}.items()}
        return arguments(self.corpus.folder, self.folder / name, **changed)

    def train(self) -> None:
        """Trains on two ranks, and exports the model."""
        self.run(*self.training("run"), processes=2)
        assert len(records(self.folder / "run")) == STEPS
        self.run(
            *("pretrain", "export", f"run={self.folder / 'run'}", f"out={self.folder / 'base'}"),
            "dtype=float32",
        )

    def differ(self, layout: str) -> float:
        """Returns the largest relative difference of a layout from one process, over all steps."""
        single = self.folder / "single"
        if not single.exists():
            self.run(*self.training("single"))
        processes, settings = LAYOUTS[layout]
        name = layout.replace(" ", "_")
        self.run(*self.training(name, **settings), processes=processes)
        ours, theirs = records(self.folder / name), records(single)
        assert ledger(self.folder / name) == ledger(single)
        assert len(ours) == len(theirs) == STEPS
        return max(
            abs(a[key] / b[key] - 1)
            for a, b in zip(ours, theirs, strict=True)
            for key in ("loss", "grad_norm")
        )

    def kill_and_resume(self) -> None:
        """Kills a run with SIGKILL between checkpoints; resumed, it takes the same steps."""
        killed = self.folder / "killed"
        self.run(*self.training("killed", stop_after=5), processes=2)
        faulty = ["tests.faults.faulty", "SIGKILL", "1", "8", *self.training("killed")[1:]]
        assert self.command(*faulty, processes=2).returncode != 0
        assert "resuming after step 5" in self.run(*self.training("killed"), processes=2)
        whole = self.folder / "run"
        assert ledger(killed) == ledger(whole)
        assert [r["loss"] for r in records(killed)] == [r["loss"] for r in records(whole)]

    def stock_losses(self) -> float:
        """Returns how far the last validation is from the losses of the export in transformers."""
        model = stock(self.folder / "base")
        assert type(model).__name__ == self.hf_class
        worst = 0.0
        for source, expected in records(self.folder / "run", "validation")[-1]["sources"].items():
            total, targets = 0.0, 0
            for batch in held_out_batches(self.corpus, source, 128, 4, 2048):
                tokens, labels = batch.tokens.flatten(), batch.labels.flatten()
                for start, end in itertools.pairwise(sorted(set(batch.cu_seqlens.tolist()))):
                    with torch.no_grad():
                        logits = model(tokens[None, start:end]).logits[0]
                    total += F.cross_entropy(logits, labels[start:end], reduction="sum").item()
                    targets += int((labels[start:end] != IGNORED).sum())
            assert targets == expected["tokens"]
            worst = max(worst, abs(total / targets / expected["loss"] - 1))
        return worst

    def tune(self) -> None:
        """Tunes the export on pairs, four steps, which lowers the loss on them."""
        pairs = self.folder / "pairs.jsonl"
        rows = [{"prompt": f"Say {word}.", "completion": f"{word}!"} for word in "abcdefgh"]
        pairs.write_text("\n".join(map(json.dumps, rows)) + "\n")
        self.run(
            *("finetune", "sft", f"model={self.folder / 'base'}", f"data={pairs}", "epochs=4"),
            *(f"out={self.folder / 'chat'}", "device=cpu", "precision=fp32", "learning_rate=1e-2"),
            "log_every=1",
        )
        losses = [record["loss"] for record in records(self.folder / "chat")]
        assert losses[-1] < losses[0] - 0.3
        assert type(stock(self.folder / "chat")).__name__ == self.hf_class

    def score(self, tasks: Path) -> dict[str, float]:
        """Returns the bits per byte on prose of the export and of the chat model in lm-eval."""
        from eval.scores import harness
        from eval.scores.config import LmEvalConfig
        from eval.scores.results import load_results

        out = self.folder / "results.json"
        models = {name: str(self.folder / name) for name in ("base", "chat")}
        harness.lm_eval(
            LmEvalConfig(models=models, task_folder=str(tasks), out=str(out), dtype="float32")
        )
        results = load_results(out)["models"]
        bits = {
            name: results[name]["tasks"]["bytes_prose_perplexity"]["metrics"]["bits_per_byte"][
                "value"
            ]
            for name in models
        }
        validated = records(self.folder / "run", "validation")[-1]["sources"]["prose"]
        # Other documents of the same source, and a model that was tuned on other text.
        assert abs(bits["base"] / validated["bits_per_byte"] - 1) < 0.3
        assert bits["chat"] > bits["base"]
        return bits

    def generate(self) -> str:
        """Returns the chat model's answer to a prompt, which is that of transformers."""
        from transformers import AutoTokenizer

        from eval.chat.generate import GenerateConfig, generate

        folder, out = self.folder / "base", self.folder / "samples.jsonl"
        prompt = "import os\n"
        generate(
            GenerateConfig(
                model=str(folder), prompts=[prompt], out=str(out), max_new_tokens=8, dtype="float32"
            )
        )
        (row,) = read_json_lines(out)
        tokenizer, ours = AutoTokenizer.from_pretrained(folder), imported(folder)
        ids = start = tokenizer(prompt).input_ids
        while len(ids) < len(start) + 8 and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                logits = ours(torch.tensor([ids]))
            assert isinstance(logits, torch.Tensor)
            ids = [*ids, int(logits[0, -1].argmax())]
        expected = tokenizer.decode(ids[len(start) :], skip_special_tokens=True)
        assert row["generated"] == expected
        return str(row["generated"])

    def remap(self) -> float:
        """Returns the largest difference of logits after a permutation of the vocabulary.

        The model with the new tokenizer is read as `init_from` reads it.
        """
        from model.remap_vocab import RemapVocabConfig, remap_vocab
        from model.vocabulary import Vocabulary

        new, out = self.folder / "turned", self.folder / "remapped"
        new.mkdir()
        byte_tokenizer(turned=True).save(str(new / "tokenizer.json"))
        named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        (new / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named})
        )
        remap_vocab(RemapVocabConfig(str(self.folder / "base"), str(new), str(out)))
        ids = [Vocabulary(folder).ids for folder in (self.folder / "base", new)]
        pieces = sorted(ids[0])
        of_piece = [torch.tensor([numbers[piece] for piece in pieces]) for numbers in ids]
        before, after = imported(self.folder / "base"), imported(out)
        chosen = torch.arange(3, 103) % len(pieces)
        with torch.no_grad():
            logits = [
                model(rows[chosen][None])[..., rows]
                for model, rows in zip((before, after), of_piece, strict=True)
            ]
        return float((logits[0] - logits[1]).abs().max())


def stock(folder: Path) -> Any:
    """Returns the model of a folder in stock transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def in_hydra(value: Any) -> Any:
    """Returns a value as a command line has it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_hydra(v)}" for key, v in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else value
