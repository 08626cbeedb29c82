"""The tokenizer of a Hugging Face folder as metadata of a GGUF file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from string import punctuation
from typing import TYPE_CHECKING, Any

from conf.errors import InputError
from conf.tokenizer_folder import ROLES, read_template
from model.families.gguf import BYTE_LEVEL, PIECES
from model.gguf.pipeline import Step, adds_space, piece_scores, pre_type, refused
from model.vocabulary import BYTE_TOKEN

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in a GGUF file."""
ENCODED_SPACE = chr(256 + ord(" "))
"""A space within a merge, which would separate the two tokens."""


@dataclass
class GGUFVocabulary:
    """The tokenizer of a model, in the terms of llama.cpp.

    Attributes:
        model: Kind of the tokenizer: BYTE_LEVEL, or PIECES for BPE of SentencePiece.
        pre: Name of the pre-tokenizer.
        tokens: Spellings by id.
        types: Types by id, such as NORMAL.
        merges: The pairs that are merged, in their order; empty if scores order them.
        scores: Scores by id, which order the merges; empty if there are merges.
        add_space: Whether a space is added before a text.
        special: Ids by role, such as `eos`.
        add_bos: Whether a text gets the BOS token.
        add_eos: Whether a text gets the EOS token.
        template: The chat template, or None.
        notes: Sentences about differences for unusual texts.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    add_space: bool = False
    template: str | None = None
    notes: list[str] = field(default_factory=list)

    def write(self, writer: GGUFWriter) -> None:
        """Adds the tokenizer to a GGUF file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.add_space)
        else:
            writer.add_token_merges(self.merges)
        for role, number in self.special.items():
            getattr(writer, f"add_{role}_token_id")(number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.template is not None:
            writer.add_chat_template(self.template)


def read_vocabulary(folder: Path, vocab_size: int) -> GGUFVocabulary:
    """Returns the tokenizer of a folder as `transformers` loads it.

    Raises InputError if llama.cpp would tokenize differently, or if the tokenizer has more tokens
    than the model has rows, `vocab_size`.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model={folder}: the tokenizer cannot be loaded ({str(error).splitlines()[0]})."
        ) from None
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise refused(f"a tokenizer of the class {type(loaded).__name__} without this file")
    state: dict[str, Any] = json.loads(backend.to_str())
    if state["model"]["type"] != "BPE":
        raise refused(f"a model of type {state['model']['type']}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if state["model"].get(key):
            raise refused(f"{key}={state['model'][key]}")
    add_bos, add_eos = _added_ends(loaded)
    kind: dict[str, Any] = _pieces(state) if _is_pieces(state) else _byte_level(state)
    tokens, types = _tokens(state, vocab_size, loaded.unk_token, is_pieces="scores" in kind)
    if "scores" in kind:
        kind["scores"] = [kind["scores"].get(token, 0.0) for token in tokens]
    special = _special(loaded, folder, vocab_size)
    if "NFC" in json.dumps(state["normalizer"]):
        kind["notes"] = [
            "llama.cpp does not compose characters (Unicode NFC) as the tokenizer does"
        ]
    return GGUFVocabulary(
        tokens=tokens,
        types=types,
        special=special,
        add_bos=add_bos,
        add_eos=add_eos,
        template=read_template(folder),
        **kind,
    )


def _is_pieces(state: Step) -> bool:
    return bool(state["model"].get("byte_fallback"))


def _byte_level(state: Step) -> dict[str, Any]:
    merges = [" ".join(part.replace(" ", ENCODED_SPACE) for part in m) for m in _merges(state)]
    if not merges:  # llama.cpp needs one; without a token for its result, it has no effect
        vocab = state["model"]["vocab"]
        merges = [next(f"{c} {c}" for c in punctuation if c in vocab and c + c not in vocab)]
    return {"model": BYTE_LEVEL, "pre": pre_type(state), "merges": merges}


def _pieces(state: Step) -> dict[str, Any]:
    space = adds_space(state)
    scores = piece_scores(state["model"]["vocab"], _merges(state))
    return {"model": PIECES, "pre": "default", "scores": scores, "add_space": space}


def _merges(state: Step) -> list[tuple[str, str]]:
    """Returns the merges, which are pairs or, in older files, texts with a space in between."""
    found = state["model"]["merges"]
    return [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in found]


def _tokens(
    state: Step, vocab_size: int, unk: str | None, *, is_pieces: bool
) -> tuple[list[str], list[int]]:
    """Returns spellings and types by id; rows without a token are unused."""
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [UNUSED] * vocab_size
    added = {entry["id"]: entry for entry in state["added_tokens"]}
    known = {number: token for token, number in state["model"]["vocab"].items()}
    for number, token in (known | {n: entry["content"] for n, entry in added.items()}).items():
        if number >= vocab_size:
            raise InputError(
                f"tokenizer.json: the token {token!r} has the id {number}, but the model has "
                f"{vocab_size} rows. Remove the token, or use the tokenizer of the model."
            )
        if "\0" in token:
            raise refused(f"the token {token!r}, which contains the character 0")
        tokens[number], types[number] = token, NORMAL
        if number in added:
            types[number] = _added_type(added[number])
        if is_pieces and BYTE_TOKEN.fullmatch(token):
            types[number] = BYTE
        if is_pieces and token == unk:
            types[number] = UNKNOWN
    return tokens, types


def _added_type(entry: Step) -> int:
    """Returns the type of an added token; raises InputError if it takes neighbouring spaces."""
    for key in ("lstrip", "rstrip", "single_word"):
        if entry[key]:
            raise refused(f"the token {entry['content']!r} with {key}=true")
    return CONTROL if entry["special"] else USER_DEFINED


def _added_ends(loaded: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Returns whether a text gets a BOS and an EOS token.

    Raises InputError if it gets other tokens.
    """
    with_ends = loaded("a")["input_ids"]
    plain = loaded("a", add_special_tokens=False)["input_ids"]
    assert isinstance(with_ends, list)
    assert isinstance(plain, list)
    for add_bos in (False, True):
        for add_eos in (False, True):
            bos = [loaded.bos_token_id] if add_bos else []
            eos = [loaded.eos_token_id] if add_eos else []
            if with_ends == [*bos, *plain, *eos]:
                return add_bos, add_eos
    raise refused(f"a text that becomes the tokens {with_ends} instead of {plain}")


def _special(loaded: PreTrainedTokenizerBase, folder: Path, vocab_size: int) -> dict[str, int]:
    """Returns the ids of special tokens by role; `eot` is a second token that ends a text."""
    ids = {role: getattr(loaded, f"{role}_token_id") for role in ROLES}
    found = {role: number for role, number in ids.items() if number is not None}
    path = folder / "generation_config.json"
    if not path.is_file():
        path = folder / "config.json"
    stated = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    ends = [stated] if isinstance(stated, int) else list(stated or [])
    if ends and found.get("eos") not in ends:
        found["eos"] = ends[0]
    others = [number for number in ends if number != found.get("eos")]
    if others:
        found["eot"] = others[0]
    return {role: number for role, number in found.items() if number < vocab_size}
