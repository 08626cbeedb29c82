"""A run on a corpus whose documents were packed into sequences, with masked ranges."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

from tests.runs import arguments, records


def test_a_fitted_corpus_is_trained_on_in_its_lengths_alone(command, corpus, tmp_path):
    library = Path(sysconfig.get_path("stdlib"))
    rows = []
    for path in sorted(library.glob("[a-h]*.py")):
        text = path.read_text()[:6000]
        parts = [text[at : at + 90] for at in range(0, len(text), 90)]
        rows += [{"text": part, "skip": [[0, len(part) // 2]]} for part in parts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "fitted"
    made = command(
        "data_pipeline",
        "tokenize",
        "corpus=jsonl",
        f"corpus.sources.web.paths=[{tmp_path / 'rows.jsonl'}]",
        "corpus.sources.web.no_loss_field=skip",
        "corpus.fit=[128,256]",
        "corpus.held_out_fraction=0.02",
        "tokenizer=load",
        f"tokenizer.path={corpus.tokenizer_path}",
        "tokenizer.pad_token='<pad>'",
        "workers=1",
        f"out={out}",
    )
    assert made.returncode == 0, made.stderr
    changes = {"recipe__stages__short__seq_len": 128, "recipe__stages__long__seq_len": 256}
    stages = [f"recipe.stages.{name}.mixture" for name in ("short", "long")]
    mixtures = [f"~{stage}.{source}" for stage in stages for source in ("code", "prose")]
    mixtures += [f"+{stage}.web=1" for stage in stages]
    run_dir = tmp_path / "run"
    done = command(*arguments(out, run_dir, stop_after=12, **changes), *mixtures)
    assert done.returncode == 0, done.stderr
    losses = [record["loss"] for record in records(run_dir)]
    assert losses[-1] < losses[0]
    refused = command(
        *arguments(out, tmp_path / "other", recipe__stages__short__seq_len=64), *mixtures
    )
    assert refused.returncode == 2
    assert "recipe.stages.short.seq_len=64: " in refused.stderr
    assert "were packed into sequences of 128 or 256" in refused.stderr
