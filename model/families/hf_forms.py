"""Forms of a config and of tokenizer settings that both transformers 4 and transformers 5 load.

Version 5 writes files that version 4 misreads. It states the RoPE base only in `rope_parameters`,
which version 4 ignores, silently using its default base of 10,000. It also names a tokenizer class
that version 4 does not have. Some releases of vLLM, llama.cpp's converter and other tools read
folders with version 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.families.layer_types import FULL, SLIDING

Settings = dict[str, Any]


ABOUT_THE_LOADER = ("name_or_path", "is_local", "local_files_only")
"""Keys of a tokenizer_config.json that state from where it was loaded, such as a path."""


def config_in_both_forms(config: Settings) -> Settings:
    """Returns a config.json with RoPE and the dtype under the names of transformers 4 and 5."""
    made = {key: value for key, value in config.items() if key != "_name_or_path"}
    for name, other in (("dtype", "torch_dtype"), ("torch_dtype", "dtype")):
        if name in config:
            made.setdefault(other, config[name])
    rope = config.get("rope_parameters")
    if rope is None and "rope_theta" in config:
        scaling = dict(config.get("rope_scaling") or {})
        kind = scaling.pop("type", None)  # the name before transformers 4.43
        scaling.setdefault("rope_type", kind or "default")
        made["rope_parameters"] = {"rope_theta": config["rope_theta"], **scaling}
    elif rope and FULL in rope:  # one entry per kind of layer
        full = {key: value for key, value in rope[FULL].items() if key != "rope_theta"}
        made["rope_theta"] = rope[FULL]["rope_theta"]
        if full.get("rope_type", "default") != "default":
            made["rope_scaling"] = full
        if SLIDING in rope:
            made["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
    elif rope and "rope_theta" in rope:
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        made["rope_theta"] = rope["rope_theta"]
        if "partial_rotary_factor" in scaling:
            made["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
        if scaling.get("rope_type", "default") != "default":
            made["rope_scaling"] = scaling
    return made


def tokenizer_in_both_forms(settings: Settings) -> Settings:
    """Returns a tokenizer_config.json whose class and special tokens transformers 4 and 5 load."""
    made = {key: value for key, value in settings.items() if key not in ABOUT_THE_LOADER}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
        made.pop("backend", None)
    # Without a class, version 4 chooses one by the model's type, and that of Llama adds a BOS.
    made.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    if isinstance(settings.get("extra_special_tokens"), list):  # a dictionary in version 4
        made["additional_special_tokens"] = made.pop("extra_special_tokens")
    return made


def tokenizer_settings(special: Mapping[str, str], max_seq_len: int) -> Settings:
    """Returns the tokenizer_config.json for a tokenizer.json.

    Args:
        special: Spellings of the special tokens by role, such as `bos`.
        max_seq_len: Context length of the model in tokens.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": token for role, token in special.items()},
    }


def special_tokens(settings: Settings) -> Settings:
    """Returns the special_tokens_map.json that belongs to a tokenizer_config.json."""
    return {
        key: value
        for key, value in settings.items()
        if value is not None
        and (key == "additional_special_tokens" or (key.endswith("_token") and key[:4] != "add_"))
    }


def write_json(path: Path, content: Settings) -> None:
    """Writes a JSON file in the format of transformers."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
