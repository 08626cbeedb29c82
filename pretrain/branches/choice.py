"""Composes the config of a branch: what `branch_from` leaves open is as in the trunk.

The model, optimizer, objective and recipe of the trunk become choices of their config groups, so
that keys such as `optim.learning_rate` override their fields like those of any other choice. The
recipe then gets the trunk's stages in front of its own (`data_pipeline.sampling.fork`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from conf.errors import InputError
from conf.overrides import SWEEP, compose_command
from data_pipeline.sampling.fork import fork_recipe, with_batch
from data_pipeline.sampling.recipe import StagePlan
from pretrain.branches.trunk import Trunk, known_trunk, read_trunk
from pretrain.config import OptimConfig
from pretrain.optim.schedule import learning_rate
from pretrain.recipe import StageRate, TrainingRecipeConfig

CHOICE = "of_branch_from"
GROUPS = ("model", "optim", "objective", "recipe")
"""Config groups that are those of the trunk unless they are given."""
KEYS = {key: key for key in ("seed", "precision", "data.folder", "data.max_epochs")}
"""Keys that are those of the trunk unless they are given, with their names in its config."""
OPEN = "???"
"""Value of a key that has to be given."""
FROM_TRUNK = ("seq_len", "mixture", "rope_theta", "precision")
"""Keys that a stage of a branch has from the trunk's stage at the fork, unless they are given."""


def take_groups(arguments: list[str]) -> list[str]:
    """Returns the arguments of a command line, with the trunk's values of what they do not give.

    Raises:
        InputError: The trunk does not exist, or the branch has no folder of its own.
    """
    given = _given(arguments)
    branch_from = given["branch_from"]
    _check_folder(branch_from, given.get("run_dir"), bool(set(SWEEP) & set(arguments)))
    trunk = known_trunk(branch_from, Path(given["run_dir"]), given.get("checkpoint.copy_to"))
    return with_groups(arguments, trunk)


def with_groups(
    arguments: list[str],
    trunk: Trunk,
    groups: Sequence[str] = GROUPS,
    keys: Mapping[str, str] = KEYS,
) -> list[str]:
    """Returns the arguments with the trunk's values of what they do not give.

    Args:
        arguments: The command line.
        trunk: The trunk.
        groups: Config groups that the command has from the trunk.
        keys: Keys that it has from the trunk, with their names in the trunk's config.

    Raises:
        InputError: Another seed is given.
    """
    given = _given(arguments)
    seed = str(trunk.config["seed"])
    if given.get("seed", seed) != seed:
        raise InputError(
            f"seed={given['seed']}: the order of {trunk.label} has seed {seed}, and a branch "
            "continues it. Remove the key."
        )
    chosen = []
    for group in groups:
        ConfigStore.instance().store(group=group, name=CHOICE, node=trunk.config[group])
        chosen += [f"{group}={CHOICE}"] if group not in given else []
    for key, source in keys.items():
        value = _value(trunk.config, source)
        chosen += [f"{key}={value}"] if key not in given and value is not None else []
    return [*chosen, *arguments]


def take_recipe(arguments: list[str], config_name: str) -> list[str]:
    """Returns the readable arguments of a command line, with the whole recipe of a branch.

    Args:
        arguments: The command line.
        config_name: Name of the command's primary config.

    Raises:
        InputError: The recipe cannot continue the trunk.
    """
    given = _given(arguments)
    if "run_dir" not in given:  # a command that trains nothing
        return with_recipe(arguments, config_name, read_trunk(given["branch_from"]))
    run_dir, copy_to = Path(given["run_dir"]), given.get("checkpoint.copy_to")
    trunk = known_trunk(given["branch_from"], run_dir, copy_to)
    return with_recipe(arguments, config_name, trunk)


def with_recipe(arguments: list[str], config_name: str, trunk: Trunk) -> list[str]:
    """Returns readable arguments with the stages of the trunk in front of those they give.

    Raises:
        InputError: The recipe cannot continue the trunk.
    """
    recipe = [one for one in arguments if _is_of_recipe(one) or one.startswith("+given=")]
    names = []
    for number, point in enumerate(_points(recipe)):
        own = compose_command(config_name, point).recipe
        names.append(f"{CHOICE}_{number}")
        node = branch_recipe(own, trunk)
        ConfigStore.instance().store(group="recipe", name=names[-1], node=node)
    rest = [one for one in arguments if not _is_of_recipe(one)]
    return [f"recipe={','.join(names)}", *rest]


def _given(arguments: list[str]) -> dict[str, str]:
    """Returns the values of the arguments by key, without quotes."""
    pairs = [argument.lstrip("+").partition("=") for argument in arguments if argument[:1] != "-"]
    return {key: value.strip("'\"") for key, sign, value in pairs if sign}


def _check_folder(branch_from: str, run_dir: str | None, sweeps: bool) -> None:
    """Raises InputError if a branch has no folder of its own, or several trunks."""
    if run_dir is None:
        raise InputError(
            f"branch_from={branch_from}: a branch needs a folder of its own. Add run_dir=<folder>."
        )
    if sweeps and "," in branch_from:
        raise InputError(
            f"branch_from={branch_from}: a sweep over trunks does not determine the settings. "
            "Start one command per trunk."
        )
    if Path(branch_from.rpartition("@")[0]).resolve() == Path(run_dir).resolve():
        raise InputError(
            f"run_dir={run_dir}: this is the run that branch_from={branch_from} starts from. "
            "Choose another folder."
        )


def branch_recipe(own: Any, trunk: Trunk) -> dict[str, Any]:
    """Returns the recipe of a branch as plain data: the trunk's stages, and then its own.

    Args:
        own: The composed recipe of the command line.
        trunk: The trunk.

    Raises:
        InputError: The recipe cannot continue the trunk.
    """

    def structured(schema: type, content: Any) -> Any:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), content))

    before = structured(TrainingRecipeConfig, trunk.config["recipe"])
    order = trunk.about["plan"]
    sizes: dict[str, int] = dict(order["source_tokens"])
    for stage in order["stages"]:
        sizes |= stage.get("source_tokens") or {}
    plan = StagePlan(before, sizes)
    at_fork = with_batch(before, before.stages[plan.at(trunk.step - 1).name])
    content = _filled(OmegaConf.to_container(own, throw_on_missing=False), before, at_fork)
    recipe = fork_recipe(
        before,
        plan,
        trunk.step,
        structured(TrainingRecipeConfig, content),
        order["atom"],
        trunk.label,
    )
    if recipe.inherited:  # a later stage may continue from the rate at which the trunk arrived
        last = list(recipe.stages)[recipe.inherited - 1]
        optim = structured(OptimConfig, trunk.config["optim"])
        rate = learning_rate(optim, plan, plan.tokens_at(trunk.step))
        constant = StageRate("constant", rate)
        recipe.stages[last] = replace(recipe.stages[last], learning_rate=constant)
    made: Any = OmegaConf.to_container(OmegaConf.structured(recipe))
    return dict(made)


def _filled(content: Any, before: Any, at_fork: Any) -> dict[str, Any]:
    """Returns a recipe in which the stages of the branch have what they leave open from the trunk.

    Args:
        content: The recipe as it was given.
        before: The recipe of the trunk.
        at_fork: The stage of the trunk in which the branch begins.

    Raises:
        InputError: A stage has no tokens, for which the trunk gives no value.
    """
    for key, value in {
        "name": before.name,
        "global_batch_tokens": at_fork.global_batch_tokens,
    }.items():
        content[key] = value if content[key] == OPEN else content[key]
    known = asdict(at_fork)
    for name, stage in content["stages"].items():
        if stage["tokens"] == OPEN:
            key = f"recipe.stages.{name}.tokens"
            raise InputError(f"{key} has no value. Give {key}=...")
        if name in before.stages:
            continue
        for key in FROM_TRUNK:
            if stage[key] in (OPEN, None, {}):
                stage[key] = known[key]
        if not stage["rope_scaling"]["type"]:
            stage["rope_scaling"] = known["rope_scaling"]
        if not stage["fim"]:
            read = stage["mixture"] or known["fim"]
            stage["fim"] = {source: fim for source, fim in known["fim"].items() if source in read}
    return dict(content)


def _is_of_recipe(argument: str) -> bool:
    """Returns True for the choice of a recipe, or an override of a key in it."""
    return re.match(r"[+~]*recipe[.=]", argument) is not None


def _points(arguments: list[str]) -> list[list[str]]:
    """Returns the arguments of each point of a sweep, or the arguments if there is no sweep."""
    overrides = OverridesParser.create().parse_overrides(arguments)
    values = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [argument]
        for one, argument in zip(overrides, arguments, strict=True)
    ]
    return [list(point) for point in product(*values)]


def _value(config: Mapping[str, Any], key: str) -> Any:
    """Returns the value of a dotted key, or None."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
