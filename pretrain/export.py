"""The command `python -m pretrain export`, which writes a run's model as a Hugging Face folder.

Stock `transformers`, vLLM and lm-eval load the folder without any code of this project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING, OmegaConf
from tokenizers import Tokenizer
from torch import Tensor

from conf.chat import DEFAULT, ChatTemplate, named_template
from conf.errors import InputError, one_of
from conf.model_card import CardConfig, describe_teacher, model_card
from conf.output_kinds import MODEL
from conf.outputs import Output
from conf.parents import describe_parents
from conf.renamed import load_run_config
from data_pipeline.sampling.fim import describe_fim
from data_pipeline.sampling.recipe import ScheduledStage, StagePlan
from data_pipeline.store.corpus import open_corpus
from data_pipeline.store.manifest import FILE, Manifest, load_manifest
from data_pipeline.store.storage import StorageError
from data_pipeline.tokenizing.corpus_tokenizer import exported_tokenizer
from model.config import ModelConfig
from model.families import family_named
from model.families.folder import hf_config, save_weights
from model.families.hf_forms import tokenizer_settings
from model.families.model_files import ModelFiles
from model.flops import parameters
from model.folding import folded
from model.network import build_meta
from model.norms import describe_norms, describe_scales
from model.parametrization import parametrization_row
from pretrain.checkpoints import find, read
from pretrain.config import PretrainConfig
from pretrain.initial_state import InitialWeights
from pretrain.origin import Origin, origin_of
from pretrain.setup import CORPUS
from pretrain.stage_network import network_after, network_of_checkpoint

EMA = "hooks.Ema."
"""Prefix of the names of the running average in a checkpoint."""
HEAD = "lm_head.weight"
"""A checkpoint of a model with tied embeddings has them under this name, too."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class ExportConfig:
    """Configuration of `pretrain export`.

    run: the run folder.
    step: `latest`, or a step with a checkpoint; 0 is the model before training, rebuilt from the
        config.
    out: the folder to write.
    dtype: dtype of the weights, `bfloat16` or `float32`.
    chat_template: the chat template to store with the tokenizer, for fine-tuning; null for the one
        of `init_from`, or danube if there is none.
    card: metadata for the front matter of the card.
    overwrite: whether to replace `out` if it is a model folder that Headwater wrote.
    data: the corpus of the run, needed only if the run folder has no copy of the tokenizer and the
        corpus has moved.
    weights: `trained`, or `ema` for the average that the run keeps with ema.decay.
    """

    run: str = MISSING
    step: str = "latest"
    out: str = MISSING
    dtype: str = "bfloat16"
    chat_template: ChatTemplate | None = None
    card: CardConfig = field(default_factory=CardConfig)
    overwrite: bool = False
    data: str | None = None
    weights: str = "trained"

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, tuple(DTYPES))
        one_of("weights", self.weights, ("trained", "ema"))


def export(config: ExportConfig) -> None:
    """Writes a run's model as the Hugging Face folder `out`.

    The folder appears only once it is complete.
    """
    output = Output(config.out, MODEL, config.overwrite, [config.run])
    output.check()
    run_dir = Path(config.run)
    run = read_run_config(run_dir)
    manifest = corpus_of(run_dir, config.data or run.data.folder, config.data is not None)
    plan = StagePlan(run.recipe, manifest.edition_tokens("train"))
    if config.step == "0" and run.branch_from:
        raise InputError(
            f"step=0: {config.run} is a branch of {run.branch_from}. Export a later step, or give "
            "the run that it descends from."
        )
    metadata: dict[str, Any] = {}
    facts: dict[str, str] = {}
    has_step_0 = (run_dir / "checkpoints" / "step_0").is_dir()
    if config.step == "0" and config.weights == "trained" and not has_step_0:
        step, tokens, weights = 0, 0, initial_weights(run)
        model = network_after(run.model, plan, 0)
    else:
        path, metadata = find.checkpoint_of_step(run_dir / "checkpoints", config.step)
        step, tokens, weights = metadata["step"], metadata["tokens"], read.weights(path)
        if config.weights == "ema":
            average, facts["average"] = running_average(path, metadata)
            weights = iter(average)
        model = network_of_checkpoint(metadata, run.model, plan)
    origin = origin_of(run_dir, run.init_from)
    with output.folder() as folder:
        form = ModelFolder(
            config.dtype,
            chosen_template(config.chat_template, origin),
            origin,
            config.card.metadata(origin.card if origin else {}),
        )
        write_model_folder(folder, weights, run, model, manifest, metadata, form, facts)
    print(f"{config.out}: {model.name} after {step} steps ({tokens:,} tokens), {config.dtype}")


def running_average(path: Path, metadata: dict[str, Any]) -> tuple[read.Tensors, str]:
    """Returns the running average in a checkpoint, and its description for the card.

    Raises:
        InputError: The checkpoint has none.
    """
    stored = read.Tensors(path, EMA)
    entries = int(stored.read("entries")) if stored.shapes else 0
    if not entries:
        raise InputError(
            f"weights=ema: {path} has no average of the weights. Export weights=trained, average "
            "checkpoints with python -m pretrain average, or train with ema.decay."
        )
    settings = metadata["hooks"]["Ema"]
    return read.Tensors(path, f"{EMA}average."), (
        f"exponential moving average of {entries} entries, one every "
        f"{settings['every_steps']} steps, with decay {settings['decay']:g}"
    )


@dataclass(frozen=True)
class ModelFolder:
    """Properties of an exported folder other than the weights and their network.

    dtype: name of the dtype to store.
    chat_template: the chat template to store.
    origin: the model that the run was continued from.
    front: metadata for the front matter of the card.
    """

    dtype: str
    chat_template: str
    origin: Origin | None
    front: Mapping[str, Any]


def write_model_folder(
    folder: Path,
    weights: Iterator[tuple[str, Tensor]],
    run: PretrainConfig,
    model: ModelConfig,
    manifest: Manifest,
    metadata: Mapping[str, Any],
    form: ModelFolder,
    facts: Mapping[str, str],
) -> None:
    """Writes weights with their config, tokenizer and card as a Hugging Face folder.

    Args:
        folder: The folder to write to.
        weights: Names and values of the parameters.
        run: The config of the run.
        model: The network at the exported step.
        manifest: The corpus of the run.
        metadata: Metadata of the exported checkpoint; empty for the model before training.
        form: Dtype, chat template and origin.
        facts: Further rows of the card.
    """
    origin = form.origin
    stored = (
        (name, folded(name, value, model))
        for name, value in weights
        if not (model.tie_embeddings and name == HEAD)
    )
    save_weights(folder, stored, DTYPES[form.dtype], family_named(model.architecture))
    tokenizer, settings = exported_settings(manifest, model.max_seq_len, origin)
    special = special_ids(tokenizer, settings)
    files = ModelFiles(
        hf_config(model, special, form.dtype),
        tokenizer,
        settings,
        form.chat_template,
        generation_settings(special, manifest, origin),
    )
    files.write(folder, export_card(run, model, manifest, metadata, origin, form.front, facts))


def corpus_of(run_dir: Path, folder: str, ignore_copy: bool) -> Manifest:
    """Returns the manifest of the corpus that a run was trained on, with its tokenizer available.

    Args:
        run_dir: The run folder.
        folder: The corpus, for runs of earlier versions that have no copy of the manifest.
        ignore_copy: True to read `folder` even if the run folder has a copy.

    Raises:
        InputError: No manifest is found, or its tokenizer is not that of the run.
    """
    copy = run_dir / CORPUS
    if not ignore_copy and (copy / FILE).is_file():
        manifest = load_manifest(copy)
    else:
        try:
            manifest = open_corpus(folder)
        except StorageError:
            raise
        except InputError as error:
            raise InputError(
                f"run={run_dir}: the run folder has no copy of its tokenizer, and the corpus named "
                f"in its config cannot be read ({str(error).rstrip('.')}). Give data=<folder of "
                "the corpus>."
            ) from None
    manifest.check_tokenizer()
    env = run_dir / "env.json"
    trained = json.loads(env.read_text())["tokenizer_fingerprint"] if env.is_file() else None
    if trained not in (None, manifest.tokenizer["sha256"]):
        raise InputError(
            f"data={manifest.folder}: the tokenizer ({manifest.tokenizer['sha256'][:16]}) is not "
            f"that of run={run_dir} ({trained[:16]}). Give the corpus of the run."
        )
    return manifest


def read_run_config(run_dir: Path) -> PretrainConfig:
    """Returns the config that a run was started with."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise InputError(f"run={run_dir}: {path} does not exist. Give a run folder.")
    merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), load_run_config(path))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, PretrainConfig)
    return config


def initial_weights(run: PretrainConfig) -> Iterator[tuple[str, Tensor]]:
    """Returns an iterator over the name and value of each parameter before the first step."""
    if run.init_from and not (Path(run.init_from) / "config.json").is_file():
        raise InputError(
            f"step=0: the run started from init_from={run.init_from}, which does not exist. "
            "Restore that folder, or export a step with a checkpoint."
        )
    initial = InitialWeights(run)
    shapes = build_meta(run.model).named_parameters()
    return ((name, initial.value(name, parameter.shape)) for name, parameter in shapes)


def chosen_template(given: ChatTemplate | None, origin: Origin | None) -> str:
    """Returns the chat template to export: the given one, that of `init_from`, or DEFAULT."""
    if given is not None:
        return given.template
    own = origin.template if origin is not None else None
    return named_template(DEFAULT).template if own is None else own


def exported_settings(
    manifest: Manifest, max_seq_len: int, origin: Origin | None = None
) -> tuple[str, dict[str, Any]]:
    """Returns the tokenizer.json of a corpus, and its tokenizer_config.json.

    Args:
        manifest: The corpus.
        max_seq_len: Number of positions of the model.
        origin: The model that the run was continued from, whose special tokens are used.
    """
    content, pieces = exported_tokenizer(manifest)
    special = pieces if origin is None else origin.special_tokens(pieces)
    kept = {} if origin is None else origin.tokenizer_settings
    return content, tokenizer_settings(special, max_seq_len) | kept


def special_ids(tokenizer: str, settings: Mapping[str, Any]) -> dict[str, int | None]:
    """Returns `bos_token_id`, `eos_token_id` and `pad_token_id`."""
    ids = Tokenizer.from_str(tokenizer).token_to_id
    roles = [f"{role}_token" for role in ("bos", "eos", "pad")]
    return {f"{role}_id": ids(settings[role]) if role in settings else None for role in roles}


def generation_settings(
    special: Mapping[str, int | None], manifest: Manifest, origin: Origin | None
) -> dict[str, Any]:
    """Returns the generation_config.json, with that of the model that the run was continued from.

    Generation ends at the tokens of that model, and at the token that ends a document.
    """
    settings = {"_from_model_config": False, **special}
    if origin is None:
        return settings
    ends = origin.generation.get("eos_token_id")
    ends = [*(ends if isinstance(ends, list) else [ends]), special["eos_token_id"]]
    ends = list(dict.fromkeys([*ends, manifest.tokenizer["eos_id"]]))
    ends = [end for end in ends if end is not None]
    return origin.generation | settings | {"eos_token_id": ends if len(ends) > 1 else ends[0]}


def export_card(
    run: PretrainConfig,
    model: ModelConfig,
    manifest: Manifest,
    metadata: Mapping[str, Any],
    origin: Origin | None,
    front: Mapping[str, Any],
    more: Mapping[str, str],
) -> str:
    """Returns the content of README.md for the exported folder.

    Args:
        run: The config of the run.
        model: The network at the exported step.
        manifest: The corpus of the run.
        metadata: Metadata of the exported checkpoint; empty for the model before training.
        origin: The model that the run was continued from.
        front: Metadata for the front matter.
        more: Further facts about the weights.
    """
    step, tokens = metadata.get("step", 0), metadata.get("tokens", 0)
    parents = metadata.get("parents", [])
    plan = StagePlan(run.recipe, manifest.edition_tokens("train"))
    begun = [stage for stage in plan.stages if stage.first_step < step]
    fim = describe_fim({stage.name: stage.fim for stage in begun}, manifest)
    continued = {} if origin is None else {"continued from": origin.name}
    facts = {
        **continued,
        "parameters": f"{parameters(model):,}",
        "architecture": f"{model.architecture}, {model.num_layers} layers of {model.hidden_size}, "
        f"{model.num_heads} heads and {model.num_kv_heads} key-value heads of {model.head_dim}",
        "sliding window": model.describe_windows(),
        "norms": describe_norms(model),
        "activation and scales": describe_scales(model),
        **parametrization_row(model),
        "positions": f"{model.max_seq_len:,}, {model.describe_positions()}",
        "attention": _documents_seen(begun),
        **({"fill in the middle": fim} if fim else {}),
        "trained on": f"{tokens:,} tokens in {step} steps of recipe {run.recipe.name}",
        **({"parents": describe_parents(parents)} if parents else {}),
        **(
            {"taught by": describe_teacher(teacher)} if (teacher := metadata.get("teacher")) else {}
        ),
        "data": _editions_read(begun or plan.stages[:1], manifest),
        "tokenizer": f"{manifest.vocab_size} ids, sha256 {manifest.tokenizer['sha256'][:16]}",
        "precision": run.precision,
        "seed": str(run.seed),
        **more,
    }
    summary = "A base model pretrained from scratch with Headwater."
    if origin is not None:
        summary = f"{origin.name}, continued with Headwater on {tokens:,} tokens."
    return model_card(run.name, summary, facts, metadata=front)


def _editions_read(stages: Sequence[ScheduledStage], manifest: Manifest) -> str:
    """Returns the name of the corpus and the fingerprints of the editions that stages read."""
    last = {stage.edition: stage.name for stage in stages}
    editions = [
        f"fingerprint {manifest.at_edition(edition).fingerprint[:16]}"
        + (f" up to stage {name}" if len(last) > 1 else "")
        for edition, name in last.items()
    ]
    return f"{manifest.name}, {', then '.join(editions)}"


def _documents_seen(stages: Sequence[ScheduledStage]) -> str:
    """Returns which documents of a packed sample the tokens attended to in training."""
    names = [stage.name for stage in stages if stage.joins_documents]
    across = f"; across documents in stage {', '.join(names)}" if names else ""
    return f"within a document of a packed sample{across}"
