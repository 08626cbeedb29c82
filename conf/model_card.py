"""Parts of a model card: the `README.md` of a model folder, as the Hugging Face Hub reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from conf.errors import InputError

CARD = "README.md"
OWN_TAG = "headwater"
HUB_CACHE = re.compile(r"models--([^/]+)--([^/]+)/snapshots/[^/]+/?$")
"""Path of a model in the cache of `huggingface_hub`, which has its owner and name."""
LICENSE_KEYS = ("license", "license_name", "license_link", "language")
"""Metadata that a model inherits from every model that it was made from."""
OWN_KEYS = (*LICENSE_KEYS, "base_model", "datasets", "tags")
"""Metadata that a model inherits from one that Headwater made."""


@dataclass
class CardConfig:
    """Metadata for the front matter of a model card, in the vocabulary of the Hugging Face Hub.

    A value that is not given is taken from the card of the model that this one was made from.

    license: identifier of the license, such as apache-2.0.
    base_model: owner/name of the published model that this one was made from.
    datasets: owner/name of each published dataset that it was trained on.
    tags: words to find the model by.
    """

    license: str | None = None
    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise InputError(
                f"card.license={self.license}: not an identifier of the Hub. Give one such as "
                "apache-2.0, mit or other."
            )
        _check_names("card.base_model", [self.base_model] if self.base_model else [])
        _check_names("card.datasets", self.datasets)

    def metadata(self, inherited: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the metadata of a card, with inherited values where none is given."""
        given = {
            "license": self.license,
            "base_model": self.base_model,
            "datasets": merged(inherited.get("datasets"), self.datasets),
            "tags": merged([OWN_TAG], inherited.get("tags"), self.tags),
        }
        kept = {key: inherited[key] for key in OWN_KEYS if inherited.get(key)}
        if self.license is not None:
            kept = {key: value for key, value in kept.items() if not key.startswith("license_")}
        return kept | {key: value for key, value in given.items() if value}


def _check_names(key: str, names: Iterable[str]) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    for name in names:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise InputError(
                f"{key}={name}: not a name on the Hub ({str(error).rstrip('.')}). Give owner/name."
            ) from None


def merged(*lists: Sequence[str] | str | None) -> list[str]:
    """Returns the elements of lists in order, each once; a list of one may be a plain string."""
    found = [[one] if isinstance(one, str) else one or [] for one in lists]
    return list(dict.fromkeys(element for one in found for element in one))


def read_front_matter(folder: Path) -> dict[str, Any]:
    """Returns the metadata of the card in a folder, {} if there is none that can be read."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    try:
        metadata = yaml.safe_load(split_front_matter(text)[0])
    except yaml.YAMLError:
        metadata = None
    return metadata if isinstance(metadata, dict) else {}


def split_front_matter(text: str) -> tuple[str, str]:
    """Returns the YAML of a card's front matter, empty if there is none, and the rest of it."""
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.S)
    return (found[1], text[found.end() :]) if found else ("", text)


def inherited_metadata(folder: Path) -> dict[str, Any]:
    """Returns the metadata that a model inherits from the one in a folder.

    A published model is itself the `base_model`, if its owner and name are known from its path in
    the cache of the Hub. Otherwise only its license is inherited, because the base_model and
    datasets on its card are those of that model.
    """
    found = read_front_matter(folder)
    is_own = OWN_TAG in merged(found.get("tags"))
    kept = {key: found[key] for key in (OWN_KEYS if is_own else LICENSE_KEYS) if found.get(key)}
    if name := hub_name(folder):
        kept["base_model"] = name
    return kept


def hub_name(folder: Path) -> str | None:
    """Returns the owner/name of a model in the cache of the Hub, None for any other folder."""
    cached = HUB_CACHE.search(str(folder.absolute()))
    return f"{cached[1]}/{cached[2]}" if cached else None


def model_card(
    name: str,
    summary: str,
    facts: Mapping[str, str],
    example: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Returns a card with a summary, a table of facts, a code example and metadata for the Hub."""
    parts = [summary, markdown_table(["", ""], facts.items()), loading_example(example)]
    return f"{front_matter(metadata)}# {name}\n\n" + "\n\n".join(parts) + "\n"


def describe_teacher(teacher: Mapping[str, Any]) -> str:
    """Returns a sentence part that names a teacher, from the `teacher` of a checkpoint.

    Cards are published, so it has no path of this machine.
    """
    name, *caches = (Path(path).name for path in (teacher["path"], *teacher.get("caches", [])))
    step = f", step {teacher['step']}" if "step" in teacher else ""
    cached = f", cached in {' and '.join(caches)}" if caches else ""
    return (
        f"{name}{step}, {teacher['fingerprint'][:16]}; its {teacher['top_k']} most "
        f"probable tokens at temperature {teacher['temperature']:g}{cached}"
    )


def front_matter(metadata: Mapping[str, Any] | None = None) -> str:
    """Returns the YAML header that tells the Hub how to load the model.

    metadata: further keys, such as `tags` or `model-index`.
    """
    header = {"library_name": "transformers", "pipeline_tag": "text-generation", **(metadata or {})}
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n"


def with_section(text: str, heading: str, body: str) -> str:
    """Returns a card with a section at its end, which replaces an earlier one of this heading."""
    section = f"## {heading}\n\n{body}\n"
    before, found, rest = text.partition(f"\n## {heading}\n")
    _, following, after = rest.partition("\n## ") if found else ("", "", "")
    return f"{before.rstrip()}\n\n{section}{following}{after}"


def markdown_table(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Returns a Markdown table; `|` in a cell becomes `/`."""
    lines = [_table_row(heads), "|---" * len(heads) + "|", *map(_table_row, rows)]
    return "\n".join(lines)


def loading_example(more: str = "") -> str:
    """Returns a code block that loads the model and tokenizer, and ends with the text `more`."""
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n{more}```'
    )


def _table_row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"
