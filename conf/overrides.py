"""Translates command-line arguments into Hydra's grammar, guided by the schema.

Hydra treats `run_dir=runs/lr=3e-4` as an error and `name=1e3` as a number. Here, the type of the
key decides: the value of a string key is taken literally, and a whole number may be written as 1e6.
A value that remains unreadable is rejected with one sentence that names the key and shows the
quoted form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from conf.errors import InputError, did_you_mean, one_of
from conf.renamed import current_key, rename_in_yaml

CONF_DIR = Path(__file__).parent

SWEEP = ("--multirun", "-m")
ELEMENT = re.compile(
    r"""\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^,]*?)\s*(?:,|$)"""  # quoted, or up to a comma
)
SCALES = {"k": 3, "m": 6, "g": 9, "b": 9, "t": 12}
GIVEN = "given"
"""Config group of the values that Hydra accepts from a config, but not from an override."""


@dataclass(frozen=True)
class Word:
    """One argument `key=value`; `sign` is the `+` or `++` before the key, or empty."""

    sign: str
    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.sign}{self.key}={self.value}"


def readable(arguments: list[str], config: str, schema: type) -> list[str]:
    """Returns the arguments of a command in Hydra's grammar.

    Args:
        arguments: the arguments after the name of the command.
        config: name of the command's primary config, whose schema has been registered.
        schema: the dataclass of the config.

    Raises:
        InputError: an argument cannot be read.
    """
    groups = groups_of(config)
    sweeps = any(option in arguments for option in SWEEP)
    found: list[str] = []
    options: list[str] = []  # argparse accepts them only before or after all overrides
    values: dict[str, Any] = {}
    entries: dict[str, dict[str, str]] = {}
    held: list[tuple[Word, str]] = []
    for argument in arguments:
        matched = re.fullmatch(r"(\+{0,2})([A-Za-z_][\w.@/:-]*)=(.*)", argument, re.S)
        if argument[:1] == "~":
            found.append(f"~{current_key(argument[1:])}")
            continue
        if not matched:
            options.append(argument)
            continue
        sign, key, value = matched.groups()
        word = Word(sign, current_key(key), value)
        kind = kind_of(schema, word.key)
        _check_parents(word.key, schema)
        if holders := _holders(schema, word.key):
            held += [(word, holder) for holder in holders]
            word = Word("++" if word.sign else "", word.key, word.value)
        if word.key in groups and not (sweeps and "," in word.value):
            found = _choice(found, word, groups[word.key])
        elif (given := _given_entries(word, kind)) is not None:
            if is_dataclass(kind):
                inner = [Word(word.sign, f"{word.key}.{n}", text) for n, text in given.items()]
                found += [str(_fitted(one, schema, sweeps)) for one in inner]
            else:
                entries.setdefault(word.key, {}).update(given)
        elif word.key not in groups and _shadows_group(word.key, kind):
            values[word.key] = parsed(str(_fitted(word, schema, sweeps=False))).value()
        else:
            found.append(str(_fitted(word, schema, sweeps)))
    if not entries and not held:
        return [*_given(values), *found, *options]
    composed = compose_command(config, [one for one in found if one.partition("=")[0] in groups])
    for key, given in entries.items():
        before = _select(composed, key) or {}
        found += [f"~{key}.{name}" for name in before if name not in given]
        inner = [Word("++", f"{key}.{name}", text) for name, text in given.items()]
        found += [str(_fitted(word, schema, sweeps)) for word in inner]
    new = [holder for word, holder in held if word.sign and _select(composed, holder) is None]
    for word, holder in held:
        if holder not in new and _select(composed, holder) is None:
            known = _select(composed, holder.rpartition(".")[0]) or {}
            name = holder.rpartition(".")[2]
            raise InputError(
                f"{word.key} is not a key of this config: {holder} does not exist"
                f"{did_you_mean(name, known)}. To add {holder}, begin its keys with +, as in "
                f"+{word.key}=..."
            )
    return [*_given(values | {holder: {} for holder in new}), *found, *options]


def _shadows_group(key: str, kind: Any) -> bool:
    """Returns True if a plain key has the name of a config group that other commands use.

    Hydra would look up the value among the choices of that group, as for `model=folder` in a
    command whose `model` is a path.
    """
    is_plain = kind is not None and not is_dataclass(kind) and get_origin(kind) is not dict
    return is_plain and (CONF_DIR / key).is_dir()


def groups_of(config: str) -> dict[str, list[str]]:
    """Returns the choices of each group in the defaults of a primary config."""
    import yaml

    defaults = yaml.safe_load((CONF_DIR / "command" / f"{config}.yaml").read_text()).get(
        "defaults", []
    )
    return {
        group: sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
        + ["null"] * (choice is None)
        for default in defaults
        if isinstance(default, dict)
        for group, choice in ((key.lstrip("/"), choice) for key, choice in default.items())
    }


def _given_entries(word: Word, kind: Any) -> dict[str, str] | None:
    """Returns the entries of a whole dictionary, or None if the word does not give one.

    The forms are `{a:1,b:2}`, null, and `a:1`, which is what a shell leaves of `{a:1}`.
    """
    plain = get_origin(kind) is dict and not is_dataclass(get_args(kind)[1])
    if not plain and not (isinstance(kind, type) and is_dataclass(kind)):
        return None
    if plain and word.value == "null":
        return {}
    one = re.fullmatch(r"([A-Za-z_]\w*):(.*)", word.value, re.S)
    if one:
        return {one[1]: one[2]}
    override = parsed(str(word)) if word.value[:1] == "{" else None
    if override is None or not isinstance(override.value(), dict):
        return None
    return {str(name): _written(value) for name, value in override.value().items()}


def _written(value: Any) -> str:
    """Formats a value in Hydra's grammar."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_written(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return "null" if value is None else str(value).lower()


def _check_parents(key: str, schema: type) -> None:
    """Raises InputError if a key is inside a single value, such as the path of a file."""
    names = key.split(".")
    for length in range(1, len(names)):
        outer = ".".join(names[:length])
        if kind_of(schema, outer) in (str, int, float, bool):
            known = kind_of(schema, names[-1]) is not None
            meant = f" (did you mean '{names[-1]}'?)" if known else ""
            raise InputError(
                f"{key} is not a key of this config, because {outer} is a single value{meant}."
            )


def _holders(schema: type, key: str) -> list[str]:
    """Returns the dictionary entries, such as a stage or a source, that hold a key, outer first."""
    names, found = key.split("."), []
    for length in range(1, len(names)):
        kind = kind_of(schema, ".".join(names[:length]))
        if get_origin(kind) is dict and is_dataclass(get_args(kind)[1]):
            found.append(".".join(names[: length + 1]))
    return found


def _given(values: dict[str, Any]) -> list[str]:
    """Returns the argument that sets dotted keys which Hydra accepts only from a config.

    The values are registered as the only choice of a config group, which the argument selects.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    if not values:
        return []
    node = OmegaConf.create({})
    for key, value in values.items():
        OmegaConf.update(node, key, value)
    # Hydra looks for the first group by its name, and loads the second one, which is relative to
    # the folder of the primary config.
    for group in (GIVEN, f"command/{GIVEN}"):
        ConfigStore.instance().store(group=group, name="entries", node=node, package="_global_")
    return [f"+{GIVEN}=entries"]


def store_schema(config: str, schema: type) -> None:
    """Registers the dataclass that a command's primary config is checked against."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(
        group="command", name=f"{config}_schema", node=schema, package="_global_"
    )


def compose_command(config: str, overrides: list[str]) -> Any:
    """Returns the composed config of a command, whose schema has been registered.

    config: name of the command's primary config, `conf/command/<config>.yaml`.
    """
    from hydra import compose, initialize_config_dir

    rename_in_yaml()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose(f"command/{config}", overrides)


def _select(config: Any, key: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.select(config, key, throw_on_missing=False)


def kind_of(schema: Any, key: str) -> Any:
    """Returns the type of a dotted key without its `| None`, or None for an unknown key."""
    kind = schema
    for name in key.split("."):
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif isinstance(kind, type) and is_dataclass(kind):
            kind = get_type_hints(kind).get(name)
        else:
            return None
        if get_origin(kind) in (Union, UnionType):
            kinds = [one for one in get_args(kind) if one is not type(None)]
            kind = kinds[0] if len(kinds) == 1 else None
    return kind


def parsed(text: str) -> Any:
    """Returns an override as Hydra parses it, or None if it does not follow Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def quoted(text: str) -> str:
    """Quotes a text for Hydra's grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


def _choice(found: list[str], word: Word, choices: list[str]) -> list[str]:
    """Returns the arguments with the choice for a config group added."""
    override = parsed(str(word))
    value = None if override is None else override.value()
    if value is None and override is not None and "null" in choices:
        return [one for one in found if one.partition("=")[0] != word.key]
    replaced = isinstance(value, dict) and f"~{word.key}" in found  # replaced by the keys of a file
    if not replaced and (not isinstance(value, str | list) or not value):
        known = ", ".join(choices)
        if "," in word.value and set(word.value.split(",")) <= set(choices):
            raise InputError(
                f"{word.key}={word.value}: expected one choice. Write {word.key}=[{word.value}] to "
                "merge several, or add --multirun to run them one after the other."
            )
        raise InputError(f"{word.key}={word.value}: unknown choice (known: {known}).")
    for choice in value if isinstance(value, list) else ():
        one_of(word.key, str(choice), choices)
    return [*found, str(word)]


def _fitted(word: Word, schema: type, sweeps: bool) -> Word:
    """Returns the word with a value that Hydra parses as the type of its key."""
    kind = kind_of(schema, word.key)
    if not word.sign and get_origin(kind_of(schema, word.key.rpartition(".")[0])) is dict:
        word = Word("++", word.key, word.value)  # an entry with a name that the user chose
    override = parsed(str(word))
    if override is not None and ((override.is_sweep_override() and sweeps) or "${" in word.value):
        return word
    value = word.value
    if kind in (int, float):
        return Word(word.sign, word.key, _number(word, kind))
    if override is not None and value[:1] in ("'", '"'):
        return word
    if kind is str and value not in ("", "null", "???"):
        return Word(word.sign, word.key, quoted(value))
    if get_origin(kind) is list and get_args(kind)[0] is str and _is_list(value):
        inner = [_element(text) for text in _elements(value)]
        return Word(word.sign, word.key, f"[{','.join(inner)}]")
    if override is None and kind is None:
        return Word(word.sign, word.key, quoted(value))  # an unknown key, rejected later
    if override is None and get_origin(kind) in (list, dict):
        form = "[a,b]" if get_origin(kind) is list else "{a:1,b:2}"
        raise InputError(f"{word.key}={value}: expected the form {word.key}={form}.")
    if override is None:
        raise InputError(
            f"{word.key}={value}: the value has characters with a special meaning in Hydra. Quote "
            f'it as "{word.key}={quoted(value)}".'
        )
    return word


def _number(word: Word, kind: type) -> str:
    """Returns the value of a numeric key. Accepts 1e6 as an int, but rejects 1M and 1,000,000."""
    text = word.value.strip()
    scaled = re.fullmatch(r"([\d_]*\.?\d+)\s*([kKmMgGbBtT])", text)
    grouped = re.fullmatch(r"[+-]?\d{1,3}(?:,\d{3})+", text)
    if scaled or grouped:
        digits = scaled[1].replace("_", "") if scaled else text.replace(",", "")
        number = float(digits) * 10 ** (SCALES[scaled[2].lower()] if scaled else 0)
        raise InputError(f"{word.key}={text}: not a number. Write {word.key}={number:_.0f}.")
    if kind is int and re.fullmatch(r"[+-]?[\d_]*\.?[\d_]*([eE][+-]?\d+)?", text):
        with_point = any(sign in text for sign in ".eE")
        try:
            whole = float(text) if with_point else 0.5
        except ValueError:
            return word.value
        if whole.is_integer():
            return str(int(whole))
        if with_point:
            raise InputError(f"{word.key}={text}: expected an integer.")
    if parsed(str(word)) is None:
        name = "an integer" if kind is int else "a number"
        raise InputError(f"{word.key}={word.value}: expected {name}.")
    return word.value


def _is_list(text: str) -> bool:
    return text[:1] == "[" and text[-1:] == "]" and len(text) > 1


def _elements(text: str) -> Iterator[str]:
    """Yields the elements of a list of strings, each as it is written."""
    inner, at = text[1:-1].strip(), 0
    while at < len(inner):
        found = ELEMENT.match(inner, at)
        assert found is not None  # the last alternative matches anything
        yield found[1]
        at = found.end()


def _element(text: str) -> str:
    plain = text[:1] in ("'", '"') and text[-1:] == text[:1] and len(text) > 1
    return text if plain or text == "null" else quoted(text)
