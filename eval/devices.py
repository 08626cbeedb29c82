"""Chooses the device that a model runs on and the dtype that it computes in."""

from __future__ import annotations

import json
from pathlib import Path

from conf.errors import InputError, one_of
from conf.machine import bf16_verdict, fitting_dtype, fp16_verdict, processor, slow_warning
from conf.terminal import print_error

DTYPES = ("auto", "bfloat16", "float32", "float16")
SAFETENSORS_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def resolve_device(setting: str) -> str:
    """Returns `cpu` or `cuda`; `auto` is the GPU if there is one.

    Raises:
        InputError: the setting is unknown, or the GPU is missing.
    """
    import torch

    one_of("device", setting, ("auto", "cpu", "cuda"))
    has_cuda = torch.cuda.is_available()
    if setting == "auto":
        return "cuda" if has_cuda else "cpu"
    if setting == "cuda" and not has_cuda:
        raise InputError("device=cuda: torch finds no CUDA device. Use device=cpu or device=auto.")
    return setting


def resolve_dtype(setting: str, folder: Path, device: str, key: str = "model") -> str:
    """Returns the dtype in which a folder's model computes on a device.

    `auto` selects the stored dtype, or float32 if the device has no fast matrix products in the
    stored dtype; the change to float32 is printed. If the folder does not state a dtype, the result
    is `auto`, which transformers also accepts. An explicit dtype that is slow on this CPU causes a
    warning that states the measured speed.

    key: name of the setting that gives the model, for messages.

    Raises:
        InputError: the setting is unknown.
    """
    one_of("dtype", setting, DTYPES)
    hardware = processor(device)
    if setting != "auto":
        warning = slow_warning(f"dtype={setting}", setting, hardware, "dtype=auto")
        if warning:
            print_error(f"warning: {warning}")
        return setting
    stored = stored_dtype(folder)
    if stored is None:
        return setting
    chosen = fitting_dtype(stored, hardware)
    if chosen != stored:
        verdict = bf16_verdict(hardware) if stored == "bfloat16" else fp16_verdict(hardware)
        print_error(
            f"{key}={folder}: the weights are stored in {stored} and computed in {chosen}: "
            f"{verdict.reason}."
        )
    return chosen


def stored_dtype(folder: Path) -> str | None:
    """Returns the dtype of a Hugging Face folder's weights, or None if it is not stated.

    The dtype is read from config.json, or else from the safetensors files.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stated = config.get("dtype") or config.get("torch_dtype")
        if stated:
            return str(stated).removeprefix("torch.")
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (not a dictionary)
                    dtype = SAFETENSORS_DTYPES.get(weights.get_slice(name).get_dtype())
                    if dtype is not None:
                        return dtype
    except (OSError, ValueError, AttributeError, SafetensorError):  # reported when loading
        return None
    return None
