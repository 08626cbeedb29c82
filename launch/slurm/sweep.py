"""Expands a Hydra sweep into the command lines of runs, each with its own folder."""

from __future__ import annotations

from itertools import product

from conf.errors import InputError, first_line
from conf.overrides import SWEEP


def sweep_points(given: list[str]) -> list[list[str]]:
    """Returns the overrides of each run.

    Without --multirun there is one run. With it there is one run per combination of the values,
    each with its own `name` and `run_dir`.
    """
    rest = [part for part in given if part not in SWEEP]
    if len(rest) == len(given):
        return [given]
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(rest)
    except HydraException as error:
        raise InputError(f"{first_line(error)}.") from None
    swept = [override for override in parsed if override.is_sweep_override()]
    if not swept:
        raise InputError("--multirun: no key has several values. Give them as key=a,b.")
    fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
    plain = {part.partition("=")[0]: part.partition("=")[2] for part in fixed}
    made = []
    for values in product(*(list(override.sweep_string_iterator()) for override in swept)):
        chosen = [f"{o.get_key_element()}={value}" for o, value in zip(swept, values, strict=True)]
        point = "-".join(_short(part) for part in chosen)
        name = plain.get("name", "sweep")
        run_dir = f"{plain.get('run_dir', f'runs/{name}')}/{point}"
        keep = [part for part in fixed if part.partition("=")[0] not in ("name", "run_dir")]
        made.append([*keep, *chosen, f"name={name}-{point}", f"run_dir={run_dir}"])
    return made


def _short(part: str) -> str:
    key, _, value = part.partition("=")
    kept = "".join(c if c.isalnum() or c in "._" else "_" for c in value)
    return f"{key.lstrip('+').rpartition('.')[2]}_{kept}"
