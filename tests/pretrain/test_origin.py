"""A run takes over files from the folder that it starts from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from conf.errors import InputError
from pretrain.origin import check_same_tokenizer, inherit_origin, keep_origin, origin_of


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_copies_are_in_the_run_folder(tmp_path):
    templates = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ 1 }}"}]
    settings = {
        "eos_token": {"content": "<end>"},
        "unk_token": "<unk>",
        "padding_side": "left",
        "chat_template": templates,
        "tokenizer_class": "LlamaTokenizer",
    }
    cached = tmp_path / "models--owner--name" / "snapshots" / "0123"
    write(cached, tokenizer_config=settings, generation_config={"temperature": 0.6})
    (cached / "README.md").write_text("---\nlicense: mit\nbase_model: a/parent\n---\n")
    keep_origin(tmp_path / "run", str(cached))
    shutil.rmtree(cached)
    origin = origin_of(tmp_path / "run", str(cached))
    assert origin is not None
    assert origin.name == "owner/name"
    assert origin.card == {"license": "mit", "base_model": "owner/name"}
    assert origin.template == "{{ 1 }}"
    assert origin.tokenizer_settings == {"unk_token": "<unk>", "padding_side": "left"}
    assert origin.generation == {"temperature": 0.6}
    corpus = {"pad": "<pad>", "bos": "<s>", "eos": "</s>"}
    assert origin.special_tokens(corpus) == {"pad": "<pad>", "eos": "<end>"}
    assert origin_of(tmp_path / "random", None) is None
    inherit_origin(tmp_path / "branch", str(tmp_path / "run"))
    inherit_origin(tmp_path / "other branch", str(tmp_path / "random"))
    assert not (tmp_path / "other branch").exists()
    inherited = origin_of(tmp_path / "branch", None)
    assert inherited is not None
    assert (inherited.name, inherited.template) == ("owner/name", "{{ 1 }}")
    bare = write(tmp_path / "bare")  # as for runs of earlier versions, which have no copies
    other = origin_of(tmp_path / "other", str(bare))
    assert other is not None
    assert (other.name, other.template, other.generation) == ("bare", None, {})
    assert other.special_tokens(corpus) == corpus


def test_a_corpus_of_another_tokenizer_is_refused(corpus, tmp_path):
    model = write(tmp_path / "model")
    check_same_tokenizer(str(model), corpus)  # without a tokenizer.json
    content = json.loads(Tokenizer.from_file(str(corpus.tokenizer_path)).to_str())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    write(model, tokenizer=content)
    check_same_tokenizer(str(model), corpus)
    content["added_tokens"][0]["content"] = "<reserved>"
    vocabulary["<reserved>"] = vocabulary.pop("<pad>")
    write(model, tokenizer=content)
    check_same_tokenizer(str(model), corpus)
    content["model"]["merges"] = []
    vocabulary["Ġother"] = vocabulary.pop(last)
    write(model, tokenizer=content)
    with pytest.raises(InputError, match=r"its tokenizer is not that of init_from=.*'Ġother' in"):
        check_same_tokenizer(str(model), replace(corpus))
