"""Checks that a run may continue from a checkpoint with its current config.

The data and settings of the steps already trained must not change; later stages may.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from typing import Any

from conf.errors import InputError
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import DOCUMENTS, StagePlan
from data_pipeline.sampling.stage import Stage
from data_pipeline.store.manifest import Manifest
from model.config import ModelConfig
from model.rope_scaling import RopeScaling
from pretrain.config import PretrainConfig
from pretrain.editions import Editions
from pretrain.stage_network import network_after, network_of_checkpoint


def check_resume(
    path: Path,
    metadata: dict[str, Any],
    config: PretrainConfig,
    corpus: Manifest,
    editions: Editions,
    plan: StagePlan,
    order: SampleOrder,
) -> None:
    """Raises InputError if a run cannot continue from a checkpoint with its current config.

    Args:
        path: The checkpoint, for messages.
        metadata: Content of the checkpoint's manifest.
        config: The run as it is configured now.
        corpus: Manifest of the data as it is now.
        editions: The editions that the stages read now.
        plan: Stages as they are configured now.
        order: Order of samples as it is configured now.
    """
    check_same_model(metadata["model"], config.model, str(path))
    check_same_data(metadata, corpus, editions, str(path), config.data.folder)
    before = SampleOrder.from_json(json.dumps(metadata["plan"]))
    position, step = metadata["position"], metadata["step"]
    stage, samples, name = position["stage"], position["samples"], position["name"]
    same_steps = step <= plan.total_steps and plan.position(step) == (stage, samples)
    same_order = metadata["order"] == order.fingerprint or order.has_same_history(
        before, stage, samples
    )
    if same_steps and same_order:
        check_same_network(metadata, config.model, plan, str(path))
        return
    check_same_fim(before, order, stage, config, str(path))
    if same_order:
        what = f"with other batches: its {step} steps took {samples} samples of stage '{name}'"
    else:
        what = (
            f"in another order of samples (fingerprint {metadata['order'][:12]}, now "
            f"{order.fingerprint[:12]})"
        )
    advice = _advice(before.stages[stage], name, samples, plan)
    raise InputError(f"{path} was trained {what}. The seed or the recipe has changed. {advice}")


def check_same_fim(
    before: SampleOrder,
    now: SampleOrder,
    stage: int,
    config: PretrainConfig,
    where: str,
) -> None:
    """Raises InputError if fill in the middle changed for a stage that has started.

    stage: number of the stage in which the checkpoint was saved.
    """
    names = list(config.recipe.stages)
    for number, (old, new) in enumerate(zip(before.stages, now.stages, strict=False)):
        if number > stage or old.fim == new.fim:
            continue
        changed = next(s for s in {**old.fim, **new.fim} if old.fim.get(s) != new.fim.get(s))
        trained, stated = (
            fim[changed].to_json() if changed in fim else None for fim in (old.fim, new.fim)
        )
        raise InputError(
            f"recipe.stages.{names[number]}.fim.{changed}={stated}: {where} was trained with "
            f"{trained}. Restore these options, and change them in a later stage only."
        )


def _advice(before: Stage, name: str, samples: int, plan: StagePlan) -> str:
    """Returns advice for a stage that was changed after training on `samples` of its samples."""
    key = f"recipe.stages.{name}"
    if samples < before.samples:
        planned = before.planned_samples or before.samples
        return (
            f"Restore both, use another run_dir, or end stage '{name}' here with "
            f"{key}.tokens={samples * before.seq_len} "
            f"{key}.planned_tokens={planned * before.seq_len} and make the change in a later "
            "stage."
        )
    now = next((stage.tokens for stage in plan.stages if stage.name == name), 0)
    more = now - before.tokens if now > before.tokens else "N"
    return (
        "Restore both, or use another run_dir. To train for longer, leave "
        f"{key}.tokens={before.tokens} and add "
        f"'+recipe.stages.more={{seq_len:{before.seq_len},tokens:{more}}}'."
    )


def check_same_model(found: dict[str, object], model: ModelConfig, where: str) -> None:
    """Raises InputError if the model stored in `where` differs from the config's model.

    `max_seq_len` may be raised, for a later stage with longer sequences.
    """
    # A checkpoint from before a key existed has the model that the key's default describes.
    known = {field.name: default_of(field) for field in fields(model)} | found
    for key, expected in asdict(model).items():
        was = known[key]
        if key == "max_seq_len" and isinstance(was, int) and expected > was:
            continue
        if key not in ("name", "init", "initializer_range") and was != expected:
            raise InputError(
                f"model.{key}={expected}: {where} was trained with {was}. Restore this value, or "
                "use another run_dir."
            )


def default_of(field: Field[Any]) -> Any:
    """Returns the default of a field in the form that `asdict` gives it."""
    if field.default_factory is MISSING:
        return field.default
    return asdict(field.default_factory())


def check_same_teacher(
    metadata: dict[str, Any], teacher: Mapping[str, Any], config: PretrainConfig
) -> None:
    """Raises InputError if a teacher has other weights than the one that a checkpoint names.

    metadata: content of the checkpoint's manifest; empty at step 0.
    """
    before = (metadata.get("teacher") or {}).get("fingerprint")
    allowed = any(key.split(".")[0] == "objective" for key in config.allow_change)
    if before in (None, teacher["fingerprint"]) or allowed:
        return
    raise InputError(
        f"objective.teacher={teacher['path']}: its weights are not those that the run has learned "
        f"from so far (fingerprint {before[:12]}, now {teacher['fingerprint'][:12]}). Restore "
        "them, or allow the change with 'allow_change=[objective]'."
    )


def check_same_data(
    metadata: dict[str, Any], corpus: Manifest, editions: Editions, where: str, folder: str
) -> None:
    """Raises InputError if a stage that has started reads other data than in a checkpoint."""
    started = metadata["position"]["stage"] + 1
    # Checkpoints of earlier versions record one fingerprint for all stages.
    before = [record["data"] for record in metadata.get("editions", [])]
    before = before or [metadata["data"]] * started
    for past, now in zip(before[:started], editions, strict=False):
        if past == now["data"]:
            continue
        found = corpus.find_edition(past)
        if found is not None:
            raise InputError(
                f"recipe.stages.{now['stage']}.edition={now['edition']}: {where} was trained with "
                f"edition {found.edition_count}. Restore this value, and change it in a later "
                "stage only."
            )
        raise InputError(
            f"{where} was trained on other data (fingerprint {past[:12]}) than {folder} "
            f"(fingerprint {now['data'][:12]}). Restore the data, or use another run_dir."
        )


def check_same_network(
    metadata: dict[str, Any], model: ModelConfig, plan: StagePlan, where: str
) -> None:
    """Raises InputError if the network changed for the stage in which a checkpoint was saved.

    A stage can set the RoPE base and scaling, and whether attention crosses the boundaries of
    documents.
    """
    step = metadata["step"]
    stage = plan.at(max(0, step - 1))
    documents = metadata.get("documents", DOCUMENTS[0])
    if stage.config.documents != documents:
        raise InputError(
            f"recipe.stages.{stage.name}.documents={stage.config.documents}: {where} was trained "
            f"with {documents}. Restore this value, and change it in a later stage only."
        )
    now = network_after(model, plan, step)
    before = network_of_checkpoint(metadata, model, plan)
    for key in ("rope_theta", "rope_scaling"):
        trained, stated = getattr(before, key), getattr(now, key)
        if trained != stated:
            raise InputError(
                f"recipe.stages.{stage.name}.{key}={_in_words(stated)}: {where} was trained with "
                f"{_in_words(trained)}. Restore this value, and change it in a later stage only."
            )


def _in_words(value: float | RopeScaling) -> str:
    """Returns a RoPE base or scaling in the form in which it is given."""
    return str(asdict(value)) if isinstance(value, RopeScaling) else f"{value:g}"
