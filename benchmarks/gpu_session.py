"""Measures in nine minutes everything that needs a GPU: first right numbers, then speed.

The parts run in one process, each with a deadline that survives a hung kernel, in the order of what
is worth knowing first. JSON and Markdown are rewritten after each item, so that an interrupted
session keeps its results.

    python benchmarks/gpu_session.py --prepare kit         # on a machine with a network
    python benchmarks/gpu_session.py --kit kit             # on the machine with the GPU
    python benchmarks/gpu_session.py --kit kit --again danube profile
    python benchmarks/gpu_session.py --page                # into docs/gpu.md
    python benchmarks/gpu_session.py --kit kit --device cpu --tiny --patience 4    # a test
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.gpu import page
from benchmarks.gpu.supervisor import ROOT, WORKER, Part, Supervisor

SECONDS, AGAIN_SECONDS = 540, 240
PARTS = (
    Part("ceilings", "benchmarks.gpu.ceilings:ceilings", 40, 15),
    Part("attention numbers", "benchmarks.gpu.numbers:attention", 60, 30),
    Part("other numbers", "benchmarks.gpu.numbers:kernels", 40, 20),
    Part("training", "benchmarks.gpu.training:training", 110, 60),
    Part("memory", "benchmarks.gpu.training:memory", 60, 30),
    Part("attention speed", "benchmarks.gpu.attention_speed:attention_speed", 50, 25),
    Part("danube", "benchmarks.gpu.models:danube", 200, 90),
    Part("shapes", "benchmarks.gpu.models:shapes", 120, 70),
    Part("launches", "benchmarks.gpu.models:launches", 40, 30),
    Part("profile", "benchmarks.gpu.models:profiles", 60, 40),
)
"""The parts in order, with the time limits of each part and of each of its items."""
NAMES = tuple(part.name.replace(" ", "_") for part in PARTS)


def main() -> None:
    """Prepares a kit, runs a session, or writes its figures into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepare", type=Path, metavar="KIT", help="write the folder to carry")
    parser.add_argument("--packages", type=Path, help="of the other machine, for --prepare: a list")
    parser.add_argument("--python", default="3.12", help="of the other machine, for --prepare")
    parser.add_argument("--wheels", type=Path, help="folder of wheels, for --prepare; else pip")
    parser.add_argument("--kit", type=Path, default=Path("kit"), help="what --prepare wrote")
    parser.add_argument("--out", type=Path, help="folder of the figures; default $OUT or figures")
    parser.add_argument("--again", nargs="+", choices=NAMES, metavar="PART", help=", ".join(NAMES))
    parser.add_argument("--limit", type=float, help=f"seconds; {SECONDS}, or {AGAIN_SECONDS} again")
    parser.add_argument(
        "--patience", type=float, default=1, help="factor of the limits of parts and items"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small shapes, to test the script")
    parser.add_argument("--worker", default=WORKER, help="arguments of Python for the process")
    parser.add_argument("--page", action="store_true", help="write docs/gpu.md from the figures")
    options = parser.parse_args()
    out = options.out or Path(os.environ.get("OUT", "figures"))
    if options.prepare:
        from benchmarks.gpu.kit import prepare

        prepare(options.prepare, options.packages, options.python, options.wheels)
    elif options.page:
        page.update_page(ROOT / "docs/gpu.md", page.markdown(read(out)))
    else:
        session(options, out)


def session(options: argparse.Namespace, out: Path) -> None:
    """Runs the parts, and writes the figures after each item."""
    from benchmarks.gpu.kit import check, install

    began = time.monotonic()
    check(options.kit)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # ends the worker too
    out.mkdir(parents=True, exist_ok=True)
    before = read(out)["parts"] if options.again else {}
    slower = options.patience
    parts = [
        replace(part, seconds=slower * part.seconds, item_seconds=slower * part.item_seconds)
        for part, name in zip(PARTS, NAMES, strict=True)
        if name in (options.again or NAMES)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        site = install(options.kit, Path(scratch) / "site")
        supervisor = Supervisor(
            {
                "device": options.device,
                "tiny": options.tiny,
                "kit": str(options.kit.resolve()),
                "scratch": scratch,
            },
            out / "session.log",
            lambda found: write(out, {"parts": before | found}),
            "benchmarks.gpu.context:setup",
            {"PYTHONPATH": os.pathsep.join(filter(None, (site, os.environ.get("PYTHONPATH"))))},
            options.worker.split(),
        )
        limit = options.limit or (AGAIN_SECONDS if options.again else SECONDS)
        supervisor.run(parts, limit - (time.monotonic() - began))
    print(page.markdown({"parts": before | supervisor.figures}))
    if not any(map(page.passed, rows_of(supervisor.figures.values()))):
        sys.exit("no item ran: see the reasons above")


def rows_of(parts: Iterable[Mapping[str, Any]]) -> Sequence[dict[str, Any]]:
    """Returns the items of all parts, without the description of the machine."""
    return [row for part in parts for row in part["rows"] if row["name"] != "machine"]


def write(out: Path, figures: dict[str, Any]) -> None:
    """Writes the three files of a session, each in one step."""
    for name, text in (
        ("session.json", json.dumps(figures, indent=1) + "\n"),
        ("session.md", page.markdown(figures)),
        ("calibration.json", json.dumps(page.calibration(figures), indent=1) + "\n"),
    ):
        new = out / f"{name}.new"
        new.write_text(text)
        new.replace(out / name)


def read(out: Path) -> dict[str, Any]:
    """Returns the figures of an earlier session."""
    path = out / "session.json"
    if not path.is_file():
        sys.exit(f"{path}: no such file. Run a session first.")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    main()
