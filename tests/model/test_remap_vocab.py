"""Another tokenizer for trained weights: each row goes with what its piece stands for."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from conf.errors import InputError
from model.remap_vocab import RemapVocabConfig, remap_vocab
from model.vocabulary import Vocabulary
from tests.corpora import byte_tokenizer, make_corpus
from tests.runs import arguments, records

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the")]
ROLES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def write_tokenizer(folder, tokenizer, **roles):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast"} | (roles or ROLES)
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def write_model(folder, rows=320, tied=False, max_shard_size="5GB"):
    """A stock model with random weights, over the plain byte tokenizer."""
    torch.manual_seed(0)
    shape = MistralConfig(
        vocab_size=rows, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=tied, pad_token_id=0,
    )  # fmt: skip
    MistralForCausalLM(shape).save_pretrained(folder, max_shard_size=max_shard_size)
    return write_tokenizer(folder, byte_tokenizer())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("base") / "model")


def remap(model, tokenizer, out, **changes):
    remap_vocab(RemapVocabConfig(str(model), str(tokenizer), str(out), **changes))
    return AutoModelForCausalLM.from_pretrained(out)


def test_the_same_tokenizer_changes_nothing(base, tmp_path, capsys):
    out = tmp_path / "out"
    remap(base, base, out)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (out, base))
    for name, tensor in theirs.items():
        used = 259 if name in ("model.embed_tokens.weight", "lm_head.weight") else None
        assert torch.equal(ours[name][:used], tensor[:used])
    assert "256 kept, 61 unused, 3 by role" in capsys.readouterr().out
    card = ModelCard((out / "README.md").read_text())
    assert card.data.to_dict()["tags"] == ["headwater"]
    assert "| made from | model |" in card.text
    assert not (out / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    ("template", "own", "expected"),
    [
        ("{{ messages[0].content + '</s>' }}", None, "{{ messages[0].content + '</s>' }}"),
        ("{{ messages[0].content + '<pad>' }}", None, None),  # a token that the new one lacks
        ("{{ messages[0].content + '</s>' }}", "{{ 1 }}", "{{ 1 }}"),
    ],
)
def test_the_chat_template_is_kept_if_its_tokens_exist(base, tmp_path, template, own, expected):
    model = shutil.copytree(base, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    tokenizer = byte_tokenizer()
    content = tokenizer.to_str().replace("<pad>", "<none>")
    roles = ROLES | {"pad_token": "<none>"}
    new = write_tokenizer(tmp_path / "new", Tokenizer.from_str(content), **roles)
    if own:
        (new / "chat_template.jinja").write_text(own)
    remap(model, new, tmp_path / "out")
    made = tmp_path / "out" / "chat_template.jinja"
    assert (made.read_text() if made.is_file() else None) == expected


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_a_permuted_vocabulary_permutes_the_logits(tied, shards, tmp_path):
    base = write_model(tmp_path / "base", tied=tied, max_shard_size=shards)
    new = write_tokenizer(tmp_path / "new", byte_tokenizer(turned=True))
    model, old = remap(base, new, tmp_path / "out"), AutoModelForCausalLM.from_pretrained(base)
    text = "for the sake of it: é\n"
    before, after = (AutoTokenizer.from_pretrained(f)(text).input_ids for f in (base, new))
    assert before != after
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text).input_ids == after
    ids = [Vocabulary(base).ids, Vocabulary(new).ids]
    pieces = sorted(ids[0])
    one, two = (
        m(torch.tensor([x])).logits[..., [i[p] for p in pieces]]
        for m, x, i in ((old, before, ids[0]), (model, after, ids[1]))
    )
    assert torch.equal(one, two)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


def test_a_new_piece_is_the_mean_of_its_old_ones(base, tmp_path):
    new = write_tokenizer(tmp_path / "new", byte_tokenizer(MERGES))
    model, old = remap(base, new, tmp_path / "out"), AutoModelForCausalLM.from_pretrained(base)
    ids, before = Vocabulary(new).ids, Vocabulary(base).ids
    for ours, theirs in (
        (model.model.embed_tokens.weight, old.model.embed_tokens.weight),
        (model.lm_head.weight, old.lm_head.weight),
    ):
        rows = theirs[[before[piece] for piece in "Ġthe"]]
        assert torch.allclose(ours[ids["Ġthe"]], rows.mean(0), atol=1e-6)
        assert torch.equal(ours[ids["q"]], theirs[before["q"]])
    about = json.loads((tmp_path / "out" / "remap_vocab.json").read_text())
    assert about["rows"] == {"by role": 3, "kept": 256, "mean of pieces": 3, "unused": 58}
    assert model.config.vocab_size == 320


def test_a_draw_belongs_to_the_piece(base, tmp_path):
    """Whatever the order of the vocabulary, and with the spread of the old rows."""
    found = []
    for name, merges in (("a", MERGES), ("b", [*MERGES[:2], ("q", "u"), MERGES[2]])):
        new = write_tokenizer(tmp_path / name, byte_tokenizer(merges))
        table = remap(base, new, tmp_path / f"{name}_out", init="normal").lm_head.weight
        found.append(table[Vocabulary(new).ids["Ġthe"]])
    assert torch.equal(*found)
    spread = AutoModelForCausalLM.from_pretrained(base).lm_head.weight.std()
    assert 0.5 < found[0].std() / spread < 2
    assert abs(found[0].mean()) < spread


def test_special_tokens_go_by_role(base, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<|end|>", "<|user|>"])
    roles = {"bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<|end|>"}
    new = write_tokenizer(tmp_path / "new", tokenizer, **roles)
    model, old = remap(base, new, tmp_path / "out"), AutoModelForCausalLM.from_pretrained(base)
    ours, theirs = (m.model.embed_tokens.weight for m in (model, old))
    assert torch.equal(ours[259], theirs[2])
    assert not torch.equal(ours[260], ours[259])
    config = model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 259, 259)


def sentencepiece_like():
    """Pieces as sentencepiece spells them: `▁` for a space, bytes as <0xXX>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "▁a", "é", "b", "▁ab", "ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁", "ab")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def test_spellings_of_two_families(base, tmp_path):
    """From byte-level pieces to sentencepiece's, and on from those."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    new = write_tokenizer(tmp_path / "new", sentencepiece_like(), **special)
    model, old = remap(base, new, tmp_path / "out"), AutoModelForCausalLM.from_pretrained(base)
    ours, theirs = (m.model.embed_tokens.weight for m in (model, old))
    ids, before = Vocabulary(new).ids, Vocabulary(base).ids
    assert torch.equal(ours[ids["▁"]], theirs[before["Ġ"]])
    assert torch.equal(ours[ids["<0xC3>"]], theirs[before["Ã"]])
    assert torch.allclose(ours[ids["▁a"]], theirs[[before["Ġ"], before["a"]]].mean(0), atol=1e-6)
    assert torch.allclose(ours[ids["é"]], theirs[[before["Ã"], before["©"]]].mean(0), atol=1e-6)
    back = write_tokenizer(
        tmp_path / "back", byte_tokenizer([("a", "b"), ("Ġ", "ab"), ("Ã", "©"), ("b", "b")])
    )
    again = remap(tmp_path / "out", back, tmp_path / "again").model.embed_tokens.weight
    final = Vocabulary(back).ids
    assert torch.equal(again[final["Ġab"]], ours[ids["▁ab"]])
    assert torch.equal(again[final["Ã©"]], ours[ids["é"]])
    assert torch.equal(again[final["a"]], ours[ids["a"]])  # not <0x61>
    assert torch.equal(again[final["Ã"]], ours[ids["<0xC3>"]])
    assert torch.allclose(again[final["bb"]], ours[ids["b"]], atol=1e-6)


def test_training_goes_on(command, tmp_path):
    """A few steps, an export, another tokenizer: the loss starts below that of fresh weights."""
    old = make_corpus(tmp_path / "old")
    new = make_corpus(tmp_path / "new", tokenizer=byte_tokenizer(MERGES, turned=True))
    for arguments_ in (
        arguments(old.folder, tmp_path / "run", stop_after=10),
        ["pretrain", "export", f"run={tmp_path / 'run'}", f"out={tmp_path / 'base'}"],
        ["model", "remap_vocab", f"model={tmp_path / 'base'}", f"tokenizer={new.folder}",
         f"out={tmp_path / 'swapped'}"],
    ):  # fmt: skip
        done = command(*arguments_)
        assert (done.returncode, done.stderr) == (0, "")
    assert "Continue training with init_from=" in done.stdout
    losses = []
    for name, start in (("fresh", None), ("more", tmp_path / "swapped")):
        settings = {"model__vocab_size": 320, "init_from": start, "stop_after": 1}
        done = command(*arguments(new.folder, tmp_path / name, **settings))
        assert done.returncode == 0, done.stderr
        losses.append(records(tmp_path / name, "validation")[0]["loss"])
    assert losses[1] < losses[0] - 1


def test_bad_input_leaves_nothing(base, tmp_path):
    out, new = tmp_path / "out", write_tokenizer(tmp_path / "new", byte_tokenizer())
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(base / "config.json", bare)
    shutil.copy(base / "tokenizer.json", bare)
    bad = write_tokenizer(tmp_path / "bad", byte_tokenizer(), eos_token="<end>")
    (tmp_path / "text.json").write_text("{}")
    for model, tokenizer, sentence in (
        (tmp_path / "none", new, "there is no config.json. Give a Hugging Face model folder"),
        (bare, new, "has neither model.safetensors nor its index"),
        (base, tmp_path / "none", "none/tokenizer.json does not exist"),
        (base, tmp_path / "text.json", "is not a tokenizer.json"),
        (base, bad, "eos_token=<end> is not in tokenizer.json"),
    ):
        with pytest.raises(InputError, match=sentence):
            remap(model, tokenizer, out)
    with pytest.raises(InputError, match=r"init=mean: unknown choice \(known: mean_of_"):
        RemapVocabConfig(init="mean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "bare", "new", "text.json"]
    remap(base, new, out)
    with pytest.raises(InputError, match=r"a model folder already exists there\. .*overwrite=true"):
        remap(base, new, out)
    remap(base, new, out, overwrite=True)
