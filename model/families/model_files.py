"""The one writer of Hugging Face folders: every file of a model other than its weights.

`pretrain export`, `pretrain average`, `finetune sft`, `finetune dpo` and `model remap_vocab` all
write their folders with `ModelFiles`, in the forms that transformers 4 and 5 load alike. Weights
are written by `model.families.folder.save_weights`, or by transformers for a tuned model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from conf.model_card import CARD
from conf.tokenizer_folder import SETTINGS, SPECIAL_TOKENS, TEMPLATE, TOKENIZER, read_template
from model.families.hf_forms import (
    Settings,
    config_in_both_forms,
    special_tokens,
    tokenizer_in_both_forms,
    write_json,
)

CONFIG, GENERATION = "config.json", "generation_config.json"


@dataclass(frozen=True)
class ModelFiles:
    """Files of a model other than its weights.

    Attributes:
        config: Content of config.json, in the form of any version of transformers.
        tokenizer: Text of tokenizer.json, None if the model has no tokenizer.
        tokenizer_settings: Content of tokenizer_config.json, {} if there is none.
        template: The chat template, or None.
        generation: Content of generation_config.json, or None.
    """

    config: Settings
    tokenizer: str | None = None
    tokenizer_settings: Settings | None = None
    template: str | None = None
    generation: Settings | None = None

    @classmethod
    def read(cls, folder: Path) -> ModelFiles:
        """Returns the files of a Hugging Face folder, which must have a config.json."""
        tokenizer = folder / TOKENIZER
        return cls(
            json.loads((folder / CONFIG).read_text(encoding="utf-8")),
            tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None,
            _read_json(folder / SETTINGS),
            read_template(folder),
            _read_json(folder / GENERATION),
        )

    def write(self, folder: Path, card: str | None = None) -> None:
        """Writes the files, and `card` as README.md, into the folder that has the weights.

        The chat template has a file of its own, which both versions read; version 4 writes it into
        tokenizer_config.json.
        """
        write_json(folder / CONFIG, config_in_both_forms(self.config))
        if self.tokenizer is not None:
            (folder / TOKENIZER).write_text(self.tokenizer, encoding="utf-8")
        if self.tokenizer_settings:
            stated = {k: v for k, v in self.tokenizer_settings.items() if k != "chat_template"}
            settings = tokenizer_in_both_forms(stated)
            write_json(folder / SETTINGS, settings)
            write_json(folder / SPECIAL_TOKENS, special_tokens(settings))
        if self.template is not None:
            (folder / TEMPLATE).write_text(self.template, encoding="utf-8")
        if self.generation is not None:
            write_json(folder / GENERATION, self.generation)
        if card is not None:
            (folder / CARD).write_text(card, encoding="utf-8")


def _read_json(path: Path) -> Settings | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
