"""Options of a named choice, such as an objective, checked against the dataclass that has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from conf.errors import InputError, did_you_mean


def read_options(key: str, schema: type, given: Mapping[str, Any]) -> Any:
    """Returns the dataclass `schema` with the given options. Raises InputError for a bad one.

    key: dotted key of the config under which the options are given.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    names = [option.name for option in fields(schema)]
    options = OmegaConf.structured(schema)
    for name, value in given.items():
        if name not in names:
            known = did_you_mean(name, names) or " (there are no options)"
            raise InputError(f"{key}.{name}={value}: unknown option{known}.")
        try:
            options[name] = value
        except OmegaConfBaseException as error:
            problem = str(error).splitlines()[0].rstrip(".")
            raise InputError(f"{key}.{name}={value}: {problem}.") from None
    return OmegaConf.to_object(options)
