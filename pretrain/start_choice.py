"""Completes the command line of a run by what it starts from: a model, or a step of another run.

The modules for either are imported only if the command line has its key, so that `--help` and other
commands stay fast.
"""

from __future__ import annotations

from pretrain.model_choice import take_model

TAUGHT = {"seed": "seed", "data": "data.folder", "max_epochs": "data.max_epochs"}
"""Keys of `teach` that are those of a trunk, with their names in its config."""


def take_groups(arguments: list[str]) -> list[str]:
    """Returns the arguments as they were given, with the choices that `branch_from` implies."""
    if not _is_branch(arguments):
        return arguments
    from pretrain.branches import choice

    return choice.take_groups(arguments)


def take_start(arguments: list[str], config_name: str) -> list[str]:
    """Returns the readable arguments, with the model of `init_from` or the recipe of a branch.

    Args:
        arguments: The command line.
        config_name: Name of the command's primary config.
    """
    if not _is_branch(arguments):
        return take_model(arguments, config_name)
    from pretrain.branches import choice

    return choice.take_recipe(arguments, config_name)


def take_taught_groups(arguments: list[str]) -> list[str]:
    """Returns the arguments of `teach`, with the order of the trunk if they have `branch_from`."""
    if not _is_branch(arguments):
        return arguments
    from pretrain.branches import choice
    from pretrain.branches.trunk import read_trunk

    (branch_from,) = (one[12:].strip("'\"") for one in arguments if one.startswith("branch_from="))
    return choice.with_groups(arguments, read_trunk(branch_from), ("recipe",), TAUGHT)


def take_taught_recipe(arguments: list[str], config_name: str) -> list[str]:
    """Returns the readable arguments of `teach`, with the whole recipe of a branch."""
    if not _is_branch(arguments):
        return arguments
    from pretrain.branches import choice

    return choice.take_recipe(arguments, config_name)


def _is_branch(arguments: list[str]) -> bool:
    values = [one.partition("=")[2] for one in arguments if one.startswith("branch_from=")]
    return any(value not in ("", "null") for value in values)
