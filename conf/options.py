"""Reads the options of a named choice, such as an optimizer, into the choice's dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from conf.errors import InputError, did_you_mean


def read_options(key: str, schema: type, given: Mapping[str, Any]) -> Any:
    """Returns a `schema` dataclass with the given options; raises InputError for an invalid one.

    key: dotted key of the config under which the options are given.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    options = OmegaConf.structured(schema)
    OmegaConf.set_readonly(options, False)  # it is read-only if the dataclass is frozen
    hints = get_type_hints(schema)
    for name, value in given.items():
        if name not in options:
            known = did_you_mean(name, map(str, options)) or " (there are no options)"
            raise InputError(f"{key}.{name}={value}: unknown option{known}.")
        try:
            options[name] = value
        except OmegaConfBaseException:
            kind = getattr(hints[name], "__name__", hints[name])
            raise InputError(f"{key}.{name}={value}: expected a value of type {kind}.") from None
    return OmegaConf.to_object(options)
