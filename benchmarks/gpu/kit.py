"""Prepares the folder that a session needs on a machine without a network.

It holds the corpus of the small runs, the curve of such a run on this machine's CPU, and wheels of
the packages that the other machine lacks.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from benchmarks.gpu.context import setup
from benchmarks.gpu.training import CORPUS, CURVE, curve_of, small_run, train

MOST_BYTES = 60 << 20
"""Size of a kit that is still easy to upload."""
ROOTS = ("hydra-core", "megatron-core", "gigatoken", "orjson", "xxhash", "torchao")
"""Packages that training needs, in addition to torch and those that are on most machines."""
PLATFORMS = ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")
WHEELS = "wheels"


def prepare(kit: Path, packages: Path | None, python: str, wheels: Path | None) -> None:
    """Writes a kit, and checks its size.

    Args:
        kit: Folder to write.
        packages: File with the names of the packages that the other machine has, one per line, such
            as the output of `pip list` there; None to carry no wheels.
        python: Version of Python there, such as 3.12.
        wheels: Folder of wheels to take them from; None to download them with pip.

    Raises:
        SystemExit: The kit is larger than MOST_BYTES, or a wheel is missing.
    """
    from tests.corpora import make_corpus

    kit.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(kit / CORPUS, ignore_errors=True)
    make_corpus(kit / CORPUS)
    write_curve(kit)
    shutil.rmtree(kit / WHEELS, ignore_errors=True)
    if packages is not None:
        (kit / WHEELS).mkdir()
        for name, version in missing(names_in(packages)):
            add_wheel(kit / WHEELS, name, version, python, wheels)
    size = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file())
    print(f"{kit}: {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        largest = sorted((kit / WHEELS).glob("*"), key=lambda path: -path.stat().st_size)[:3]
        names = ", ".join(path.name for path in largest)
        sys.exit(f"the kit has more than {MOST_BYTES / 1e6:.0f} MB. The largest wheels: {names}.")


def write_curve(kit: Path) -> None:
    """Trains the small run in float32 on this machine's CPU, and writes its losses."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"device": "cpu", "tiny": False, "kit": str(kit), "scratch": folder}
        context = setup(options)
        run_dir = Path(folder) / "curve"
        train(small_run(context, run_dir, precision="fp32"), context)
        losses, validation = curve_of(run_dir)
        context.clean_up()
        context.writer.close()
    curve = {"losses": losses, "validation": validation}
    (kit / CURVE).write_text(json.dumps(curve, indent=1) + "\n")


def names_in(packages: Path) -> set[str]:
    """Returns the normalized first word of each line, without comments."""
    lines = [line.partition("#")[0].split() for line in packages.read_text().splitlines()]
    return {normalized(words[0]) for words in lines if words}


def normalized(name: str) -> str:
    """Returns a package's name in the form in which names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>\[; ]", name)[0]).lower()


def missing(present: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields the name and the version here of each package that ROOTS need and that is missing."""
    from packaging.requirements import Requirement

    seen = {*present, "torch", "triton"}
    waiting = [*ROOTS]
    while waiting:
        name = waiting.pop()
        if normalized(name) in seen:
            continue
        seen.add(normalized(name))
        yield name, metadata.version(name)
        needs = [Requirement(line) for line in metadata.requires(name) or []]
        waiting += [
            need.name
            for need in needs
            if need.marker is None or need.marker.evaluate({"extra": ""})
        ]


def add_wheel(target: Path, name: str, version: str, python: str, wheels: Path | None) -> None:
    """Copies or downloads one wheel. A package without a wheel must be pure Python."""
    if wheels is not None:
        stem = f"{normalized(name).replace('-', '_')}-{version}-"
        found = [path for path in wheels.glob("*.whl") if path.name.lower().startswith(stem)]
        if not found:
            sys.exit(f"{wheels}: has no wheel of {name} {version}.")
        shutil.copy(found[0], target)
        return
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    platforms = [f"--platform=manylinux{name_part}_x86_64" for name_part in PLATFORMS]
    download = [*pip, "download", "--no-deps", "--only-binary=:all:", f"--python-version={python}"]
    wanted = f"{name}=={version}"
    command = [*download, "--implementation=cp", *platforms, f"--dest={target}", wanted]
    if subprocess.run(command, capture_output=True).returncode == 0:
        return
    build = [*pip, "wheel", "--no-deps", f"--wheel-dir={target}", wanted]
    subprocess.run(build, capture_output=True)
    stem = normalized(name).replace("-", "_")
    if not list(target.glob(f"{stem}-*-none-any.whl")):
        sys.exit(f"{wanted}: pip finds no wheel for Python {python}. Put one into --wheels.")


def check(kit: Path) -> None:
    """Ends the program if a folder is not a kit."""
    if not (kit / CURVE).is_file():
        sys.exit(f"--kit={kit}: has no {CURVE}. Make the kit with --prepare {kit}.")


def install(kit: Path, site: Path) -> str | None:
    """Installs the wheels of a kit into `site`. Returns the folder, or None without wheels."""
    wheels = sorted((kit / WHEELS).glob("*.whl"))
    if not wheels:
        return None
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *options,
        f"--target={site}",
        *wheels,
    ]
    subprocess.run(command, check=True)
    return str(site)
