"""Loads a model with stock `transformers`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from conf.errors import InputError
from eval.devices import resolve_device, resolve_dtype
from eval.find_model import find_model
from model.chat_tokens import ChatTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and its tokenizer.

    folder: the Hugging Face folder that both were loaded from.
    dtype: the dtype that the model computes in.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    dtype: str

    @cached_property
    def chat_tokens(self) -> ChatTokens:
        """The encoder for conversations with this model."""
        return ChatTokens(self.tokenizer)


def load_model(name: str, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """Loads the model and tokenizer that `find_model` finds.

    dtype: `auto` for the stored dtype if the device supports it (see `resolve_dtype`).

    Raises:
        InputError: the model is not found or does not load, or a setting is unknown.
    """
    torch_device = resolve_device(device)
    folder = find_model(name)
    chosen = resolve_dtype(dtype, folder, torch_device)
    os.environ["HF_HUB_OFFLINE"] = "1"  # all files are local from here on
    import transformers
    from safetensors import SafetensorError
    from torch import nn

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=chosen, local_files_only=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"model={name}: the model cannot be loaded ({str(error).splitlines()[0]})."
        ) from None
    nn.Module.to(model, torch_device)
    computed_in = str(model.dtype).removeprefix("torch.")
    return LoadedModel(folder, model.eval(), tokenizer, torch_device, computed_in)
