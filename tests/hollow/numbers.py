"""Holds the numbers of a training step as text, in one file per version of torch.

    python -m tests.hollow -m tests.hollow.numbers     # writes numbers/torch-<version>.txt

A case has one line per kernel (launches and thread blocks), collective, direction of copies, and
one for all matrix products. A changed line is a change of what the GPU is asked to do: read the
diff, and if it is meant, commit the new file with the change.
"""

from __future__ import annotations

import difflib
import tempfile
from pathlib import Path

from tests.hollow.trace import Trace

FOLDER = Path(__file__).parent / "numbers"


def describe(step: Trace) -> list[str]:
    """Returns the lines of a step: counts that do not depend on the machine."""
    lines = [
        f"kernel {name}: {count} launches, {step.blocks[name]} blocks"
        for name, count in sorted(step.kernels.items())
    ]
    lines.append(f"products: {step.products.total()}")
    lines += [
        f"collective {name}: {count}, {step.collective_bytes[name]} bytes"
        for name, count in sorted(step.collectives.items())
    ]
    lines += [
        f"copy {direction}: {count}, {step.copied_bytes[direction]} bytes"
        for direction, count in sorted(step.copies.items())
    ]
    return lines


def file_of(torch_version: str) -> Path:
    """Returns the file of a version, such as that of 2.14 for 2.14.1+cu130."""
    return FOLDER / f"torch-{'.'.join(torch_version.split('.')[:2])}.txt"


def held(path: Path) -> dict[str, list[str]]:
    """Returns the lines per case of a file."""
    cases: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            cases[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            cases[list(cases)[-1]].append(line)
    return cases


def check_numbers(case: str, step: Trace, torch_version: str) -> None:
    """Raises AssertionError with the differing lines if a step is not the one that is held."""
    expected = held(file_of(torch_version)).get(case, [])
    changed = [
        line
        for line in difflib.unified_diff(expected, describe(step), lineterm="", n=0)
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert not changed, (
        f"the step of case '{case}' has changed (- held, + now):\n"
        + "\n".join(changed)
        + "\nIf this is meant: python -m tests.hollow -m tests.hollow.numbers"
    )


def main() -> None:
    """Writes the file of the installed torch."""
    import torch

    from tests.corpora import make_corpus
    from tests.hollow.cases import HELD
    from tests.hollow.harness import rehearse, small_run

    parts = [
        f"# What one training step asks of the GPU under torch {torch.__version__.split('+')[0]}.",
        "# Written by `python -m tests.hollow -m tests.hollow.numbers`.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder) / "corpus")
        for number, (case, keywords) in enumerate(HELD.items()):
            changes = dict(keywords)
            ranks = changes.pop("ranks", 1)
            run_dir = Path(folder) / f"run{number}"
            config = small_run(corpus.folder, run_dir, stop_after=3, **changes)
            parts += ["", f"[{case}]", *describe(rehearse(config, ranks).step)]
    FOLDER.mkdir(exist_ok=True)
    path = file_of(torch.__version__)
    path.write_text("\n".join(parts) + "\n")
    print(path)


if __name__ == "__main__":
    main()
