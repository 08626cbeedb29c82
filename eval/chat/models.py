"""Loads a model as anybody would, with stock `transformers`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from conf.errors import InputError
from eval.chat.devices import device_of, dtype_of
from eval.chat.find_model import find_model
from model.chat_tokens import ChatTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode on `device`, its tokenizer, the folder that they lie in, and the type
    that it is computed in."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    dtype: str

    @cached_property
    def chat_tokens(self) -> ChatTokens:
        """How conversations are encoded."""
        return ChatTokens(self.tokenizer)


def load(name: str, dtype: str = "auto", device: str = "auto") -> Loaded:
    """Model and tokenizer of what `find_model` takes; dtype `auto` is what they are stored in where
    the device multiplies it (`dtype_of`).

    Raises:
        InputError: there is no such model or it does not load, or a setting is not known.
    """
    place = device_of(device)
    folder = find_model(name)
    taken = dtype_of(dtype, folder, place)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing remote is asked for
    import transformers
    from safetensors import SafetensorError
    from torch import nn

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=taken, local_files_only=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"model={name} does not load: {str(error).splitlines()[0]}") from None
    nn.Module.to(model, place)
    computed = str(model.dtype).removeprefix("torch.")
    return Loaded(folder, model.eval(), tokenizer, place, computed)
