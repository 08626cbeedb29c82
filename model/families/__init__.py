"""The Hugging Face model families that can be exported to and imported from `transformers`.

Each family has one file with an adapter, and one entry in `FAMILIES`. The adapter states which
features of the network its Hugging Face class supports, and converts the config and the names of
the weights. `folder.py` reads and writes model folders through the adapters, and `hf_forms.py`
makes these folders loadable by both transformers 4 and 5.
"""

from __future__ import annotations

from conf.errors import one_of
from model.families.family import Family
from model.families.gemma3 import Gemma3
from model.families.lfm3 import Lfm3
from model.families.llama import Llama
from model.families.mistral import Mistral
from model.families.olmo2 import Olmo2
from model.families.olmo3 import Olmo3
from model.families.qwen2 import Qwen2
from model.families.qwen3 import Qwen3
from model.families.smollm3 import SmolLM3

FAMILIES: dict[str, Family] = {
    "mistral": Mistral(),
    "llama": Llama(),
    "qwen2": Qwen2(),
    "qwen3": Qwen3(),
    "olmo2": Olmo2(),
    "olmo3": Olmo3(),
    "gemma3_text": Gemma3(),
    "smollm3": SmolLM3(),
    "lfm3": Lfm3(),
}
"""Adapters by `model.architecture`, which is also the `model_type` of a config.json."""

DEFAULT = "mistral"
"""The value of `model.architecture` if a model does not set it."""


def family_named(name: str) -> Family:
    """Returns the adapter of `model.architecture=name`; raises InputError if there is none."""
    one_of("model.architecture", name, FAMILIES)
    return FAMILIES[name]
