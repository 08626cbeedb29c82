"""What the facts of a machine mean for a run: pure functions from facts to sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conf.text import GIB

LEAST_SHARED_MEMORY = 1 * GIB
"""Ranks of one machine and the readers of data pass tensors through /dev/shm; containers often have
64 MiB of it."""
LEAST_FILES = 4096
"""Open shards, sockets and logs of a rank."""
LEAST_DISK = 10 * GIB
NEEDED_BY = {
    "base": "every command",
    "clean": "data_pipeline quality, and corpora with cleaning.quality or cleaning.language",
    "s3": "data and checkpoints at s3:// addresses",
    "finetune": "finetune sft, dpo",
    "eval": "eval lm_eval, perplexity, generate, report; evaluation.tasks",
    "chat": "eval serve, eval chat page, launch ui",
    "fp8": "precision=fp8 and fp8_rowwise",
    "cuda": "FlashAttention, fp8 and the energy of GPUs",
    "dev": "make test, make lint",
}
"""What each extra of the package is for."""


def advice(facts: dict[str, Any]) -> Iterator[str]:
    """Yields a sentence for whatever makes a run slow or lets it fail, with what to do."""
    cpu, variables = facts["cpu"], facts["variables"]
    if facts["gpu_driver"] and not facts["gpus"]:
        yield (
            "An NVIDIA driver is here, but torch sees no GPU: install a CUDA build of torch "
            f"(this one is for {facts['versions'].get('cuda')}), or check CUDA_VISIBLE_DEVICES."
        )
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        if name in variables:
            yield f"{name}={variables[name]} limits the instructions of matrix products: unset it."
    if not cpu["onednn"]:
        yield "This torch has no oneDNN, so that matrix products on the CPU are slow."
    if facts["device"] == "cpu" and cpu["threads"] < cpu["usable_cores"]:
        yield (
            f"torch takes {cpu['threads']} of {cpu['usable_cores']} cores: with one process, set "
            f"OMP_NUM_THREADS={cpu['usable_cores']}; launch local sets it for several."
        )
    shared, files = facts["shared_memory"], facts["open_files"]
    if shared is not None and shared["total"] < LEAST_SHARED_MEMORY:
        yield (
            f"/dev/shm has {shared['total'] / GIB:.2f} GiB, expected 1 or more: start the "
            "container with --shm-size=8g or --ipc=host."
        )
    if 0 <= files["soft"] < LEAST_FILES:
        yield (
            f"A process may open {files['soft']} files, expected {LEAST_FILES} or more for a large "
            f"corpus: ulimit -n {most_files(files['hard'])}."
        )
    here = facts["disk"]["here"]
    if here is not None and here["free"] < LEAST_DISK:
        yield (
            f"{here['path']} has {here['free'] / GIB:.1f} GiB free: a checkpoint takes 12 bytes "
            "per parameter, and two are kept."
        )
    if not (facts["programs"]["g++"] or facts["programs"]["clang++"]):
        yield "There is no C++ compiler, which parallel.compile=true needs: install g++."


def most_files(hard: int) -> int:
    """Returns the limit to set: what the hard limit allows, up to 65536."""
    return 65536 if hard < 0 else min(hard, 65536)


def lacking(missing: dict[str, list[str]], gpus: list[Any]) -> Iterator[str]:
    """Yields a line for each extra that lacks packages: for which commands, and how to get it. What
    is for GPUs is left out where there are none."""
    for extra, packages in missing.items():
        if extra == "cuda" and not gpus:
            continue
        install = "." if extra == "base" else f'".[{extra}]"'
        needed_by = NEEDED_BY.get(extra, "")
        yield f"{needed_by}: {', '.join(packages)} (pip install -c constraints.txt -e {install})"


def slower(speed: dict[str, Any]) -> str:
    """Returns how the two measured types compare; empty where they were not measured."""
    if not speed:
        return ""
    exact, half = (speed[kind]["flops_per_second"] for kind in ("float32", "bfloat16"))
    if half >= exact:
        return f"bfloat16 is {half / exact:.1f} times as fast"
    return f"bfloat16 is {exact / half:,.0f} times slower"
