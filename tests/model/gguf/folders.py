"""Folders of tiny random models with trained tokenizers, to be written as GGUF files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from model.config import ModelConfig
from model.families import FAMILIES
from model.families.gguf import ONE_DIGIT, THREE_DIGITS
from model.families.hf_forms import tokenizer_settings, write_json
from model.families.model_files import ModelFiles
from model.gguf.command import GGUFConfig, gguf
from tests.corpora import byte_tokenizer
from tests.model.families.cases import PATHS, SHAPE
from tests.model.families.stock import export, load_stock
from tests.model.shapes import tiny

SPECIAL = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
WORDS = "the 'quick brown fox's paws jumped 12 times; I'll see 2,048 of them in 1999. def f(x):\n\t"
ODD_LINES = [
    *(
        "",
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        " \n \n",
        "\t\t\t",
        " \t \n\t ",
        "a\n\n\nb",
    ),
    *("Hello", " Hello", "  Hello", "Hello ", "Hello  ", "Hello\n", "\nHello", "Hello\r\nWorld"),
    *("it's", "IT'S", "It'S he'LL we'Ve", "don't", "'tis", "''''", "they'd've", "rock'n'roll"),
    *("0", "12", "123", "1234", "12345", "1 2  3", "3.14", "1,000,000", "1e-5", "0x1F", "2nd"),
    *("½ ⅓ ²³", "①②③", "Ⅷ Ⅻ", "१२३४५", "٠١٢٣٤٥", "一二三四", "１２３ＡＢＣ", "x²+y²=z²"),
    *("Grüße", "naïve café", "cafe\u0301", "n\u0303", "Åå", "ǅ ǆ", "ß ẞ", "İı", "ﬁ ﬂ"),
    *("日本語のテスト", "我想在apple工作1314151天～", "한국어 문장", "ภาษาไทย", "हिन्दी", "বাংলা"),
    *("Привет, мир!", "нещо на Български", "Ελληνικά", "עברית", "العربية", "ქართული", "Հայերեն"),
    *("🎉", "👩‍👩‍👧‍👦", "🏳️‍🌈", "😶‍🌫️ x", "🇩🇪🇫🇷", "a🎉b", "✅ 🦙🦙", "e\u0301\u0302\u0303"),
    *("\u00a0", "a\u00a0b", "\u2003x", "\u200bx", "\u200d", "\ufeffx", "\u2028", "\u3000全角"),
    *("!!!", "...", "?!?!", "------=======", "``````", '"""', "(a)[b]{c}", "a_b-c.d/e\\f", "#$%&"),
    *(
        "def f(x):\n    return x",
        "\tif a == b:\n\t\tpass",
        "x += 1;  // y",
        "<br/>",
        "&amp;",
        "a\\nb",
    ),
    *(
        "http://a.b/c?d=e&f=1",
        "a@b.co",
        "C++",
        "#include <x.h>",
        "--flag=1",
        "$HOME/x",
        "~/.x",
        "^_^",
    ),
    *("camelCaseWord", "SCREAMING_SNAKE", "snake_case_2", "kebab-case", "UPPER lower", "aB1cD2"),
    *("<s>", "a</s>b", "<|turn|>", "<pad> ", "<s", "</ s>", "x <s> y", "<|turn|>user\nHi</s>"),
    *("\x00", "\x07", "\x1b[0m", "\x7f", "a\x00b", "\u0085", "\ue000", "\U0010ffff", "\ufffd"),
    *("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ab" * 40, " " * 33 + "x", "-" * 50, "1" * 30),
    WORDS,
]
"""Texts that tokenizers split differently."""


def byte_level(*steps: Any, ignore_merges: bool = False, normalizer: Any = None) -> Tokenizer:
    """Returns a trained tokenizer on bytes with these steps before the bytes."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    own_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not steps)
    if steps and not isinstance(steps[0], pre_tokenizers.Split):
        own_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, own_words])
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, 600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def trained(tokenizer: Tokenizer, size: int, **settings: Any) -> Tokenizer:
    """Trains a tokenizer on the odd lines, with the special tokens first."""
    special = [*SPECIAL.values(), "<|turn|>", *settings.pop("more", [])]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, show_progress=False, **settings
    )
    texts = [line for line in ODD_LINES if "\0" not in line]
    tokenizer.train_from_iterator(texts * 3, trainer)
    return tokenizer


def split(pattern: str) -> Any:
    """Returns the step that isolates what a pattern matches."""
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def pieces(*, prefix: bool) -> Tokenizer:
    """Returns a tokenizer of SentencePiece's kind, with a space before texts if `prefix`."""
    spaces = normalizers.Replace(" ", "▁")
    start = [normalizers.Prepend("▁")] if prefix else []
    plain = Tokenizer(models.BPE())
    plain.normalizer = normalizers.Sequence([*start, spaces])
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    plain = trained(plain, 500, max_token_length=8)
    learned = [tuple(merge) for merge in json.loads(plain.to_str())["model"]["merges"]]
    letters = sorted({letter for merge in learned for part in merge for letter in part})
    listed = [*SPECIAL.values(), "<|turn|>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    listed += list(dict.fromkeys(left + right for left, right in learned))
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(listed))}
    merges = []
    for piece in list(vocab)[260 + len(letters) :]:  # every way to make a piece, as converters do
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += sorted(
            (cut for cut in cuts if cut[0] in vocab and cut[1] in vocab),
            key=lambda cut: (vocab[cut[0]], vocab[cut[1]]),
        )
    model = models.BPE(vocab, merges, unk_token="<pad>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([*start, spaces])
    tokenizer.add_special_tokens([*SPECIAL.values(), "<|turn|>"])
    return tokenizer


TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {
    "gpt-2": byte_level,
    "gpt-2 without merges": byte_tokenizer,
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "llama-bpe": lambda: byte_level(split(THREE_DIGITS), ignore_merges=True),
    "dbrx": lambda: byte_level(split(THREE_DIGITS)),
    "qwen2": lambda: byte_level(split(ONE_DIGIT)),
    "pieces": lambda: pieces(prefix=False),
    "pieces with a space": lambda: pieces(prefix=True),
}
"""Tokenizers that llama.cpp has, by its name for their pre-tokenizer."""


def write_tokenizer(folder: Path, tokenizer: Tokenizer, template: str | None = TEMPLATE) -> None:
    """Writes a tokenizer with its settings into a model's folder."""
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_settings(SPECIAL, 512))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    ModelFiles.read(folder).write(folder)


def make_folder(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> Path:
    """Writes a random model with a tokenizer, whose vocabulary the config has."""
    folder.mkdir(parents=True, exist_ok=True)
    export(config, folder)
    write_tokenizer(folder, tokenizer)
    return folder


def family_config(family: str, **changes: Any) -> ModelConfig:
    """Returns a tiny config with the features that a family's exports have in other tests."""
    shape: dict[str, Any] = {**SHAPE, "vocab_size": 640, "hidden_size": 96, "architecture": family}
    return tiny(**{**shape, **FAMILIES[family].fixed, **PATHS[family], **changes})


def write_gguf(folder: Path, type: str = "f32") -> Path:
    """Writes the GGUF file of a folder next to it."""
    out = folder.with_suffix(f".{type}.gguf")
    gguf(GGUFConfig(model=str(folder), out=str(out), type=type))
    return out


@torch.no_grad()
def stock_log_probabilities(folder: Path, ids: Sequence[int]) -> list[float]:
    """Returns the log-probability of each token but the first, by transformers in float32."""
    logits = load_stock(folder).float()(torch.tensor([list(ids)])).logits[0].double()
    rows = torch.log_softmax(logits, -1)
    return [rows[at, token].item() for at, token in enumerate(ids[1:])]
