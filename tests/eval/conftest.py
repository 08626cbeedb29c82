"""A tiny model folder, a tokenized corpus with real held-out files, and its tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.store.manifest import Manifest
from data_pipeline.tokenizing.documents import write_names
from eval.tasks.build_tasks import BuildTasksConfig, build_tasks
from tests.corpora import VOCAB_SIZE, byte_tokenizer, make_corpus

WINDOW = 24
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def named_corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A corpus whose documents have names, like those of data_pipeline."""
    manifest = make_corpus(tmp_path_factory.mktemp("eval") / "corpus", held_out=40_000)
    for shards in manifest.splits["held_out"].values():
        for entry in shards:
            count = entry["documents"]
            files = [f"{entry['file']}.py"] * count
            write_names(manifest.folder / entry["file"], files, range(count))
    return manifest


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """Writes a random Mistral with a byte-level tokenizer."""

    def make(folder: Path, seed: int = 0, chat: bool = False) -> Path:
        import torch
        from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

        torch.manual_seed(seed)
        config = MistralConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=WINDOW,
            max_position_embeddings=512,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        MistralForCausalLM(config).save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=byte_tokenizer(),
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            chat_template=CHAT_TEMPLATE if chat else None,
        )
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def model(make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template."""
    return make_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="session")
def chat_model(make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A different model, with a chat template."""
    return make_model(tmp_path_factory.mktemp("model") / "chat", seed=1, chat=True)


@pytest.fixture(scope="session")
def tasks(named_corpus: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small tasks of `named_corpus`."""
    out = tmp_path_factory.mktemp("tasks") / "local"
    config = BuildTasksConfig(
        corpus=str(named_corpus.folder),
        out=str(out),
        questions=12,
        context_chars=60,
        continuation_chars=(20, 30),
        documents=5,
        document_chars=200,
    )
    build_tasks(config)
    return out
