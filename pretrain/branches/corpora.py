"""Decides how a branch continues in the corpus that it reads, and refuses what it cannot continue.

If the corpus still has the editions that the trunk read, its stages keep their numbers. In another
corpus, a source of the same name must begin with the shards that the trunk read, and then continues
where the trunk stood. New sources start at their beginning, and sources that the corpus lacks are
not read any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.errors import InputError
from data_pipeline.store.corpus import open_corpus
from data_pipeline.store.manifest import FILE, Manifest, load_manifest
from pretrain.branches.trunk import Trunk, known_trunk, recorded
from pretrain.config import PretrainConfig

CORPUS = "corpus"
"""Subfolder of a run folder with the manifest of its corpus."""


def read_elsewhere(config: PretrainConfig, corpus: Manifest) -> list[dict[str, Any]]:
    """Returns what the trunk's stages read, if it is not in the corpus of the branch.

    The result has the training tokens per source (`source_tokens`) and the fingerprint (`data`) of
    the first stages, up to the last one that the corpus lacks. It is empty for a run that is not a
    branch, and for a branch whose corpus is that of its trunk, with or without additions.

    Raises:
        InputError: A source, or the stage at the fork, cannot be continued in the corpus.
    """
    if not config.branch_from:
        return []
    run_dir = Path(config.run_dir)
    trunk = known_trunk(config.branch_from, run_dir, config.checkpoint.copy_to)
    order = trunk.about["plan"]
    begun = trunk.about["position"]["stage"] + 1
    prints = [entry["data"] for entry in trunk.about.get("editions", [])][:begun]
    prints = prints or [trunk.about["data"]] * begun
    missing = [n for n, data in enumerate(prints, 1) if corpus.find_edition(data) is None]
    count = max(missing, default=0)
    if count > config.recipe.inherited:
        name = trunk.about["position"]["name"]
        raise InputError(
            f"data.folder={config.data.folder}: this is not the corpus of {trunk.label}, whose "
            f"stage '{name}' the branch continues. Give the branch a stage of another name, which "
            "begins at the fork, or restore the corpus."
        )
    if count == begun and recorded(run_dir) is None:  # the first start
        check_sources(config, corpus, trunk, prints[-1])
    return [
        {"source_tokens": stage.get("source_tokens") or order["source_tokens"], "data": data}
        for stage, data in zip(order["stages"], prints[:count], strict=False)
    ]


def check_sources(config: PretrainConfig, corpus: Manifest, trunk: Trunk, data: str) -> None:
    """Raises InputError if the corpus cannot continue the sources of the trunk's corpus.

    data: Fingerprint of the edition that the trunk read last.
    """
    before = corpus_of_trunk(trunk, data)
    key = f"data.folder={config.data.folder}"
    if before is None:
        raise InputError(
            f"{key}: this is not the corpus of {trunk.label}, which cannot be found to compare "
            f"their sources. Restore {trunk.config['data']['folder']}."
        )
    if before.tokenizer["sha256"] != corpus.tokenizer["sha256"]:
        raise InputError(
            f"{key}: its tokenizer is not that of {trunk.label}. Tokenize the text with the "
            f"tokenizer of {trunk.config['data']['folder']}."
        )
    for source in before.splits.get("train", {}):
        old, new = before.shards("train", source), corpus.shards("train", source)
        digests = [[entry["sha256"] for entry in entries] for entries in (old, new)]
        if new and digests[1][: len(old)] != digests[0]:
            raise InputError(
                f"{key}: source '{source}' does not begin with the shards that {trunk.label} read, "
                "so its position cannot be continued. Add to the corpus of the trunk instead "
                "(add_to=), or give the source another name."
            )


def corpus_of_trunk(trunk: Trunk, data: str) -> Manifest | None:
    """Returns the manifest of the edition that the trunk read last, or None if it is gone."""
    copy = Path(trunk.run) / CORPUS
    if (copy / FILE).is_file() and (found := load_manifest(copy).find_edition(data)):
        return found
    try:
        return open_corpus(trunk.config["data"]["folder"]).find_edition(data)
    except InputError:
        return None
