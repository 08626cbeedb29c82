"""docs/cuda.md names every place where something happens on CUDA only, and what covers it."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.docs.cuda_branches import branches, places

ROW = re.compile(r"\| `([\w/.]+\.py)(?::([\w.]+))?` \| [^|]+ \| ([^|]+) \|")
KINDS = ("rehearsal", "unit", "signature", "kernel", "GPU")
COVER = re.compile(rf"({'|'.join(KINDS)}) `(tests/[\w/.]+\.py)`")
TABLE = {
    f"{path}:{name}" if name else path: COVER.findall(cell)
    for path, name, cell in ROW.findall((ROOT / "docs/cuda.md").read_text())
}


def test_the_table_names_every_place():
    found = set(branches(ROOT))
    assert sorted(found - TABLE.keys()) == [], "not in docs/cuda.md"
    assert sorted(TABLE.keys() - found) == [], "in docs/cuda.md, but nothing there is of CUDA"


def test_what_covers_a_place_exists():
    for place, covers in TABLE.items():
        assert covers, place
        for kind, path in covers:
            assert (ROOT / path).is_file(), (place, path)
            folder = {"rehearsal": "tests/hollow/", "GPU": "tests/gpu/"}.get(kind)
            assert path.startswith(folder or "tests/"), (place, kind, path)


def test_nearly_everything_is_covered_without_a_gpu():
    without = [covers for covers in TABLE.values() if any(kind != "GPU" for kind, _ in covers)]
    assert len(without) > 0.95 * len(TABLE)


def test_what_counts_as_a_place():
    source = '''
"""A sentence about cuda."""
DEFAULT = "cuda"
class Timer:
    def wait(self):
        def now():
            return torch.cuda.current_stream()
        return now
    def start(self):
        raise ValueError("device=cuda: no GPU.")
def backend(device):
    return "nccl" if device.type != "cpu" else "gloo"
'''
    assert places(source) == {"", "Timer.wait", "backend"}
