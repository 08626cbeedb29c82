"""The command line of every stage: `python -m <folder> [command] key=value ...`.

Hydra composes the primary config of the command onto its dataclass schema, so that an unknown
key, a wrong type or a missing value is reported by name before any work starts. `--help` explains
the command, `--cfg job` prints the composed config, and `--multirun` runs a sweep.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, is_dataclass
from inspect import cleandoc
from itertools import takewhile
from typing import Any, get_args, get_origin, get_type_hints

from conf.errors import EXIT_BAD_INPUT, InputError, did_you_mean
from conf.overrides import CONF_DIR, compose_command, kind_of, readable, store_schema
from conf.renamed import rename_in_yaml
from conf.terminal import print_error


@dataclass(frozen=True)
class Command:
    """One command of a stage.

    config: name of its primary config, `conf/command/<config>.yaml`.
    schema: `module:Dataclass` that the config is checked against.
    run: `module:function` that takes the dataclass. It is imported only when the command is
        chosen, so that `--help` and bad overrides are answered at once.
    summary: one line for `--help`.
    extra_help_schema: another `module:Dataclass` whose docstring `--help` shows, such as the schema
        of a file that a key names.
    choices: keys of type str that select a file of `conf/<key>/`, for `--help`; such keys of other
        commands are paths. Keys of other types are found by their type.
    base: `module:function` that takes the arguments as they were given, and returns them together
        with the choices of config groups that they imply.
    complete: `module:function` that takes the arguments and the name of the config, and returns the
        arguments together with further ones that follow from them.
    """

    config: str
    schema: str
    run: str
    summary: str
    extra_help_schema: str | None = None
    choices: tuple[str, ...] = ()
    base: str | None = None
    complete: str | None = None


def main(stage: str, commands: Mapping[str, Command], default: str | None = None) -> None:
    """Runs the command named by the first argument, or `default` if none is named.

    Exits with 0 on success. On an InputError, it prints the message and exits with the error's code
    (2 for bad input). Any other error propagates.
    """
    arguments = sys.argv[1:]
    if arguments and arguments[0] in commands:
        name = arguments.pop(0)
    elif arguments and re.fullmatch(r"[a-z_0-9]+", arguments[0]):
        _refuse(f"unknown command '{arguments[0]}'{did_you_mean(arguments[0], commands)}.")
    elif default is not None:
        name = default
    else:
        print(_usage(stage, commands))
        sys.exit(0 if arguments and arguments[0] in ("-h", "--help") else EXIT_BAD_INPUT)
    sys.argv[1:] = arguments
    try:
        if "-h" in arguments or "--help" in arguments:
            if name == default:
                print(_usage(stage, commands) + "\n")
            print(_help(stage, name, commands[name]))
            sys.argv[1:] = [part for part in arguments if part not in ("-h", "--help")]
            sys.argv += ["--cfg", "job"]
        _compose_and_run(stage, name, commands[name])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except InputError as error:
        _refuse(str(error), error.exit_code, error.every_rank)


def _compose_and_run(stage: str, name: str, command: Command) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    schema = _load(command.schema)
    store_schema(command.config, schema)
    # Without this, Hydra prints its own report of a bad override and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[0] = f"python -m {stage} {name}"
    composed: list[Any] = []

    def compose(config: DictConfig) -> None:
        settings = to_settings(config)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _load(command.run)(settings)
        else:
            composed.append(settings)

    hydra_stderr = io.StringIO()
    try:
        if command.base is not None:
            sys.argv[1:] = _load(command.base)(sys.argv[1:])
        sys.argv[1:] = readable(sys.argv[1:], command.config, schema)
        if command.complete is not None:
            sys.argv[1:] = _load(command.complete)(sys.argv[1:], command.config)
        rename_in_yaml()
        with redirect_stderr(hydra_stderr):  # hides Hydra's "Error executing job"
            hydra.main(
                version_base="1.3",
                config_path=str(CONF_DIR),
                config_name=f"command/{command.config}",
            )(compose)()
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(sentence(error, schema)) from None
    except SystemExit as end:
        if end.code == EXIT_BAD_INPUT:  # an unknown option, reported by argparse
            message = hydra_stderr.getvalue().strip().rpartition(": error: ")[2]
            raise InputError(f"{message}.") from None
        raise
    for settings in composed:  # outside Hydra, so that only config errors are caught above
        _load(command.run)(settings)


def compose_settings(command: Command, arguments: list[str]) -> Any:
    """Returns the settings of a command line, with the same checks as the command itself.

    Raises:
        InputError: the arguments are wrong, or the dataclass rejects them.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    schema = _load(command.schema)
    store_schema(command.config, schema)
    try:
        if command.base is not None:
            arguments = _load(command.base)(arguments)
        overrides = readable(arguments, command.config, schema)
        if command.complete is not None:
            overrides = _load(command.complete)(overrides, command.config)
        return to_settings(compose_command(command.config, overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(sentence(error, schema)) from None


def to_settings(config: Any) -> Any:
    """Returns a composed config as an instance of its dataclass.

    Raises:
        InputError: a key has no value, or the dataclass rejects the values.
    """
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise InputError(f"{missing[0]} has no value. Give {missing[0]}=...")
    return OmegaConf.to_object(config)


def sentence(error: Exception, schema: type) -> str:
    """Converts an error of Hydra or OmegaConf about a config of `schema` to one sentence."""
    from hydra.errors import MissingConfigException

    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = str(root).split("\n")[0].rstrip(".")
    if isinstance(root, MissingConfigException) and root.options:
        group, _, choice = (root.missing_cfg_file or "").partition("/")
        return f"{group}={choice}: unknown choice{did_you_mean(choice, root.options)}."
    key = getattr(root, "full_key", None) or ""
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing.group(1)} has no value. Give {missing.group(1)}=..."
    unknown = re.search(r"Key '(.+?)' (?:is not in struct|not in '.+')", str(root))
    if unknown:
        key = key or unknown.group(1)
        return f"{key} is not a key of this config{did_you_mean(key, _keys(schema))}."
    not_a_group = re.match(r"Could not override '(.+?)'\. No match in the defaults list", text)
    if not_a_group:  # a group in conf/ that only other commands use
        key = not_a_group.group(1)
        return f"{key} is not a key of this config{did_you_mean(key, _keys(schema))}."
    if key and re.match(r"Cannot assign \w+ to Dict\[", text):
        kind = kind_of(schema, key)
        has_fields = kind is not None and is_dataclass(get_args(kind)[1])
        form = f"+{key}.NAME.KEY=..." if has_fields else f"{key}.NAME=..."
        return f"{key} has entries with names of your choice. Give each entry as {form}"
    number = re.match(r"Value '([\d.e+-]+)' of type '\w+' could not be converted to Integer", text)
    if key and number:
        return f"{key}={number[1]}: expected an integer.{_whole(key, number[1])}"
    if key and "is not a ListConfig" in text:
        return f"{key} is a list. Give it as {key}=[...]"
    if key:
        return f"{key}: {text[0].lower() + text[1:]}."
    return text + "."


def _whole(key: str, text: str) -> str:
    """Returns advice on how to write a number that a YAML file gives as 1e6, '' if not whole."""
    try:
        number = float(text)
    except ValueError:
        return ""
    return f" Write {key}={int(number):_}." if number.is_integer() else ""


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all keys of a dataclass."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        name = prefix + field.name
        yield name
        if get_origin(hints[field.name]) is dict:
            name += ".NAME"
        for kind in (hints[field.name], *get_args(hints[field.name])):
            if isinstance(kind, type) and is_dataclass(kind):
                yield from _keys(kind, name + ".")


def _load(target: str) -> Any:
    """Imports and returns the attribute that `module:attribute` names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _usage(stage: str, commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    lines = [
        f"usage: python -m {stage} COMMAND key=value ...   (COMMAND --help shows its keys)",
        "",
    ]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(lines)


def _help(stage: str, name: str, command: Command) -> str:
    """Returns the help of a command: summary, examples, keys, and choices of its config groups.

    Hydra then prints the config.
    """
    schema = _load(command.schema)
    parts = [f"python -m {stage} {name}: {command.summary}"]
    lines = (CONF_DIR / "command" / f"{command.config}.yaml").read_text().split("\n")[1:]
    parts.append("\n".join(line[2:] for line in takewhile(lambda line: line[:1] == "#", lines)))
    explained = [schema]
    if command.extra_help_schema:
        explained.append(_load(command.extra_help_schema))
    for one in explained:
        if not (one.__doc__ or "").startswith(f"{one.__name__}("):  # else generated by dataclass
            parts.append(cleandoc(one.__doc__ or ""))
    groups = [
        f"  {key}={'|'.join(sorted(path.stem for path in (CONF_DIR / key).glob('*.yaml')))}"
        for key, kind in get_type_hints(schema).items()
        if (CONF_DIR / key).is_dir() and (key in command.choices or kind not in (str, str | None))
    ]
    if groups:
        parts.append("\n".join(["Choices (files in conf/):", *groups]))
    parts.append("The config, with keys given as key=value and nested keys as outer.inner=value:")
    return "\n\n".join(parts) + "\n"


def _refuse(sentence: str, code: int = EXIT_BAD_INPUT, every_rank: bool = False) -> None:
    if every_rank or os.environ.get("RANK", "0") == "0":
        print_error(f"error: {sentence}")
    sys.exit(code)
