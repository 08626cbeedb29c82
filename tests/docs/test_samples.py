"""Sample outputs on the pages quote words that the program still prints."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT

QUOTED = {
    "docs/chat.md": {"eval/chat/serve.py": ["endpoint: "], "conf/gradio_page.py": ["page: "]},
    "docs/check_data.md": {
        "data_pipeline/store/shard_scan.py": ["checksum mismatch", "starts at byte "],
        "data_pipeline/store/shard_checks.py": ["has the id ", "outside the vocabulary of "],
    },
    "docs/doctor.md": {
        "launch/doctor/advice.py": [" times as fast", " times slower"],
        "launch/doctor/command.py": [" GFLOP/s ("],
    },
    "docs/evaluation.md": {
        "eval/scores/perplexity.py": ["loss, nats per token", "bits per byte"],
        "eval/scores/results.py": ["value ± standard error"],
        "eval/scores/compare.py": ["difference to "],
    },
    "docs/memory.md": {
        "pretrain/planning/command.py": ["micro-batch"],
        "pretrain/planning/memory.py": ["unreduced"],
    },
    "README.md": {
        "launch/demo.py": ["validation loss ", " nats per token", "done in "],
        "conf/command/demo.yaml": [
            "evaluate the three models side by side",
            "check the exported loss in stock transformers",
            "write the report",
        ],
    },
}
"""Words of sample outputs, by page and by the file that prints them."""
CASES = [(page, file, word) for page, of in QUOTED.items() for file, w in of.items() for word in w]


@pytest.mark.parametrize(("page", "file", "word"), CASES)
def test_the_program_prints_what_a_page_quotes(page, file, word):
    assert word in (ROOT / page).read_text(), f"{page} no longer quotes {word!r}"
    assert word in (ROOT / file).read_text(), f"{page} quotes {word!r}, but not {file}"
