"""Pure functions that turn the facts about a machine into sentences of advice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conf.text import GIB

MIN_SHARED_MEMORY = 1 * GIB
"""Minimum size of /dev/shm, through which ranks and data readers pass tensors; containers often
have 64 MiB."""
MIN_OPEN_FILES = 4096
"""Minimum number of files that a rank must be able to open: shards, sockets and logs."""
MIN_FREE_DISK = 10 * GIB
NEEDED_BY = {
    "base": "every command",
    "clean": "data_pipeline quality, and corpora with cleaning.quality or cleaning.language",
    "web": "corpora with format=warc or wet, which also need the system's libmagic",
    "s3": "data and checkpoints at s3:// addresses",
    "finetune": "finetune sft, dpo",
    "eval": "eval lm_eval, perplexity, generate, report; evaluation.tasks",
    "chat": "eval serve, eval chat page, launch ui",
    "tensorboard": "logger=tensorboard",
    "gguf": "GGUF files and llama.cpp",
    "trackio": "logger=trackio",
    "fp8": "precision=fp8 and fp8_rowwise",
    "cuda": "FlashAttention, fp8 and the energy of GPUs",
    "dev": "make test, make lint",
}
"""Commands and settings that need each extra of the package."""


def advice(facts: dict[str, Any]) -> Iterator[str]:
    """Yields a sentence for each problem that makes a run slow or fail, with the remedy."""
    cpu, variables = facts["cpu"], facts["variables"]
    if facts["gpu_driver"] and not facts["gpus"]:
        yield (
            "An NVIDIA driver is installed, but torch finds no GPU. Install a CUDA build of torch, "
            "or check CUDA_VISIBLE_DEVICES. CUDA version of this torch: "
            f"{facts['versions'].get('cuda')}."
        )
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        if name in variables:
            yield f"{name}={variables[name]} slows down matrix products. Unset this variable."
    if not cpu["onednn"]:
        yield (
            "This build of torch lacks oneDNN, so matrix products on the CPU are slow. Install a "
            "build with oneDNN, such as that of PyPI."
        )
    if facts["device"] == "cpu" and cpu["threads"] < cpu["usable_cores"]:
        yield (
            f"torch uses {cpu['threads']} of {cpu['usable_cores']} cores. For one process, set "
            f"OMP_NUM_THREADS={cpu['usable_cores']}; launch local sets it for several processes."
        )
    shared, files = facts["shared_memory"], facts["open_files"]
    if shared is not None and shared["total"] < MIN_SHARED_MEMORY:
        yield (
            f"/dev/shm has {shared['total'] / GIB:.2f} GiB, but 1 GiB or more is needed. Start the "
            "container with --shm-size=8g or --ipc=host."
        )
    if 0 <= files["soft"] < MIN_OPEN_FILES:
        yield (
            f"A process can open {files['soft']} files, but a large corpus needs {MIN_OPEN_FILES} "
            f"or more. Run ulimit -n {open_files_to_set(files['hard'])}."
        )
    disk = facts["disk"]["here"]
    if disk is not None and disk["free"] < MIN_FREE_DISK:
        yield (
            f"{disk['path']} has only {disk['free'] / GIB:.1f} GiB free. Free some space for two "
            "checkpoints, each of 12 bytes per parameter."
        )
    if not (facts["programs"]["g++"] or facts["programs"]["clang++"]):
        yield "No C++ compiler was found, but parallel.compile=true needs one. Install g++."


def open_files_to_set(hard_limit: int) -> int:
    """Returns the number of open files to set: the hard limit, but at most 65536."""
    return 65536 if hard_limit < 0 else min(hard_limit, 65536)


def missing_lines(missing: dict[str, list[str]], gpus: list[Any]) -> Iterator[str]:
    """Yields a line per extra that lacks packages: what needs the extra, and how to install it.

    Packages for GPUs are skipped on a machine without GPUs.
    """
    for extra, packages in missing.items():
        if extra == "cuda" and not gpus:
            continue
        install = "." if extra == "base" else f'".[{extra}]"'
        needed_by = NEEDED_BY.get(extra, "")
        yield f"{needed_by}: {', '.join(packages)} (pip install -c constraints.txt -e {install})"


def compare_speeds(speed: dict[str, Any]) -> str:
    """Returns the speed of bfloat16 relative to float32 in words, or '' if not measured."""
    if not speed:
        return ""
    float32, bfloat16 = (speed[kind]["flops_per_second"] for kind in ("float32", "bfloat16"))
    if bfloat16 >= float32:
        return f"bfloat16 is {bfloat16 / float32:.1f} times as fast"
    return f"bfloat16 is {float32 / bfloat16:,.0f} times slower"
