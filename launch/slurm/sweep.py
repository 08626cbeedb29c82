"""Expands a Hydra sweep into the command lines of runs, each with its own folder."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from conf.errors import InputError, first_line
from conf.overrides import SWEEP
from launch import training


def checked_runs(check: Callable[[training.Training], None]) -> list[training.Training]:
    """Returns the runs of the command line, one per point of a sweep.

    Args:
        check: Raises InputError for a run that would be refused.

    Raises:
        InputError: A run is refused; the message names it if there are several.
    """
    runs = [training.compose(given) for given in sweep_points(training.overrides)]
    for run in runs:
        try:
            check(run)
        except InputError as error:
            if len(runs) == 1:
                raise
            raise InputError(f"{run.name}: {error}") from None
    return runs


def sweep_points(given: list[str]) -> list[list[str]]:
    """Returns the overrides of each run.

    Without --multirun there is one run. With it there is one run per combination of the values,
    each with its own `name` and `run_dir`.
    """
    rest = [part for part in given if part not in SWEEP]
    if len(rest) == len(given):
        return [given]
    parsed = _parsed(rest)
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


def points_of(given: list[str]) -> list[dict[str, str]]:
    """Returns the values by key of each combination of overrides with several values each."""
    parsed = _parsed(given)
    keys = [str(override.get_key_element()) for override in parsed]
    values = [
        list(o.sweep_string_iterator()) if o.is_sweep_override() else [o.get_value_element_as_str()]
        for o in parsed
    ]
    return [dict(zip(keys, point, strict=True)) for point in product(*values)]


def _parsed(given: list[str]) -> list[Any]:
    """Returns overrides as Hydra parses them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return list(OverridesParser.create().parse_overrides(given))
    except HydraException as error:
        raise InputError(f"{first_line(error)}.") from None


def _short(part: str) -> str:
    key, _, value = part.partition("=")
    kept = "".join(c if c.isalnum() or c in "._" else "_" for c in value)
    return f"{key.lstrip('+').rpartition('.')[2]}_{kept}"
