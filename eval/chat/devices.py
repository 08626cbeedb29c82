"""Where a model runs, and what it is computed in there."""

from __future__ import annotations

import json
from pathlib import Path

from conf.errors import InputError
from conf.machine import bf16_verdict, fitting_dtype, fp16_verdict, processor, slow_warning
from conf.terminal import print_error

DTYPES = ("auto", "bfloat16", "float32", "float16")
SAFETENSORS_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def device_of(setting: str) -> str:
    """`auto` is the GPU where there is one; raises InputError where what is asked for is not."""
    import torch

    has_cuda = torch.cuda.is_available()
    if setting == "auto":
        return "cuda" if has_cuda else "cpu"
    if setting not in ("cpu", "cuda"):
        raise InputError(f"device={setting}: expected one of auto, cpu, cuda.")
    if setting == "cuda" and not has_cuda:
        raise InputError("device=cuda: torch finds no CUDA device here.")
    return setting


def dtype_of(setting: str, folder: Path, device: str, key: str = "model") -> str:
    """Returns the type that the model of a folder is computed in on a device. `auto` is the type
    that it is stored in, or float32 where the device does not multiply that one, which is said;
    it stays `auto`, which transformers knows too, where the folder does not state its type.

    Warns, with a measurement, of a type that was asked for by name and that a CPU has no units for.

    Raises:
        InputError: the setting is not known.
    """
    if setting not in DTYPES:
        raise InputError(f"dtype={setting}: expected one of {', '.join(DTYPES)}.")
    found = processor(device)
    if setting != "auto":
        warning = slow_warning(f"dtype={setting}", setting, found, "dtype=auto")
        if warning:
            print_error(f"warning: {warning}")
        return setting
    stored = stored_dtype(folder)
    if stored is None:
        return setting
    taken = fitting_dtype(stored, found)
    if taken != stored:
        verdict = bf16_verdict(found) if stored == "bfloat16" else fp16_verdict(found)
        print_error(f"{key}={folder}: stored in {stored}, computed in {taken}: {verdict.reason}.")
    return taken


def stored_dtype(folder: Path) -> str | None:
    """Returns the type of a Hugging Face folder's weights as its config.json states it, else as its
    safetensors do; None where neither does."""
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stated = config.get("dtype") or config.get("torch_dtype")
        if stated:
            return str(stated).removeprefix("torch.")
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (it is not a dictionary)
                    kind = SAFETENSORS_DTYPES.get(weights.get_slice(name).get_dtype())
                    if kind is not None:
                        return kind
    except (OSError, ValueError, AttributeError, SafetensorError):  # whoever loads it will say so
        return None
    return None
