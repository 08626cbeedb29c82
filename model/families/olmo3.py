"""OLMo 3: OLMo 2 with a sliding window in chosen layers, whose positions are never scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from conf.errors import InputError
from model.families.fields import Fields
from model.families.hf_rope_kinds import check_kinds, read_kinds, write_kinds
from model.families.layer_types import FULL, SLIDING, types_of, windows_of
from model.families.olmo2 import Olmo2


class Olmo3(Olmo2):
    """Adapter of `Olmo3ForCausalLM`."""

    hf_class = "Olmo3ForCausalLM"
    features = frozenset({"sliding_window", "window_pattern", "local_rope_theta"})
    default_theta = 500_000.0
    hf_defaults: ClassVar[Mapping[str, Any]] = {
        **Olmo2.hf_defaults,
        "sliding_window": 4096,
        "layer_types": None,
    }

    def check(self, model: Mapping[str, Any]) -> None:
        """Raises InputError if the class lacks a feature of the model, or requires another value.

        In version 4 of transformers, the class has one RoPE base.
        """
        super().check(model)
        check_kinds(model)
        theta, local = model["rope_theta"], model["local_rope_theta"]
        if local not in (None, theta):
            raise InputError(
                f"model.local_rope_theta={local}: expected {theta:g}, the value of rope_theta, "
                f"with model.architecture={model['architecture']}. Change one of them."
            )

    def to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the sliding window, and which layers have it. The class always needs a window."""
        return {
            **super().to_hf(model),
            "sliding_window": model["sliding_window"] or model["max_seq_len"],
            "layer_types": types_of(model),
        }

    def from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the order of norms, the QK-norm, the sliding window and its pattern.

        Without `layer_types`, every fourth layer has full attention.
        """
        layers = config["num_hidden_layers"]
        types = config["layer_types"] or [
            FULL if (layer + 1) % 4 == 0 else SLIDING for layer in range(layers)
        ]
        found = {**super().from_hf(config), **windows_of(types, layers, config["sliding_window"])}
        return found if SLIDING in types else {**found, "local_rope_theta": None}

    def rope_to_hf(self, model: Mapping[str, Any]) -> Fields:
        """Returns the positions of both kinds of layers as fields of a config.json."""
        return write_kinds(model)

    def rope_from_hf(self, config: Mapping[str, Any]) -> Fields:
        """Returns the positions of both kinds of layers as fields of `ModelConfig`."""
        theta = config.get("rope_theta") or self.default_theta
        if not config.get("rope_parameters") and theta != self.default_theta:
            raise InputError(
                f"rope_theta={theta}: transformers 4 and 5 compute different positions from it "
                f"unless it is {self.default_theta:g}. Add rope_parameters to the file, with an "
                f"entry '{FULL}' and an entry '{SLIDING}'."
            )
        return read_kinds(config, self.default_theta, self.default_theta)
