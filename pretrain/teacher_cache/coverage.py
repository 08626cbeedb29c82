"""Which steps of a run read the contexts that a cache has the answers to.

Two runs read the same contexts up to a step if their orders are the same up to it, and so are the
data and the settings that change what a network sees. A run can use a cache for these steps, even
if its recipe, batch or length differ later, as in a branch. For the other steps it needs another
cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from conf.errors import InputError
from data_pipeline.sampling.order import SampleOrder
from data_pipeline.sampling.recipe import RecipeConfig, StageConfig, StagePlan
from pretrain.teacher_cache.manifest import CacheManifest, contexts_of
from pretrain.teacher_cache.units import samples_of

KEY = "objective.teacher_cache"


@dataclass(frozen=True)
class Contexts:
    """Everything that determines the contexts that a run reads.

    plan: The stages of the run.
    order: The order of samples.
    recipe: The recipe.
    data: Fingerprint of the edition of the corpus that each stage reads.
    tokenizer: Fingerprint of the tokenizer of the corpus.
    """

    plan: StagePlan
    order: SampleOrder
    recipe: RecipeConfig
    data: Sequence[str]
    tokenizer: str

    def of_stage(self, stage: int) -> dict[str, Any]:
        """Returns the settings of a stage that change what a network sees of a sample."""
        return contexts_of(self.recipe, self.plan.stages[stage])


def shared_steps(cache: CacheManifest, run: Contexts) -> int:
    """Returns the number of steps from the start on in which a run reads a cache's contexts."""
    if cache.tokenizer != run.tokenizer:
        return 0
    order = cache.sample_order()
    low, high = 0, run.plan.total_steps
    while low < high:  # what holds for a step holds for all earlier ones
        middle = (low + high + 1) // 2
        if _is_shared(cache, order, run, *run.plan.position(middle)):
            low = middle
        else:
            high = middle - 1
    return low


def _is_shared(
    cache: CacheManifest, order: SampleOrder, run: Contexts, stage: int, samples: int
) -> bool:
    if stage >= len(order.stages) or not run.order.has_same_history(order, stage, samples):
        return False
    return all(
        cache.data[past] == run.data[past] and not _changed(cache, run, past)
        for past in range(stage + 1)
    )


def _changed(cache: CacheManifest, run: Contexts, stage: int) -> dict[str, tuple[Any, Any]]:
    """Returns the settings of a stage that differ, with the value of the cache and of the run."""
    defaults = asdict(StageConfig())  # for keys that a cache of an earlier version lacks
    before, now = cache.contexts[stage], run.of_stage(stage)
    pairs = {
        key: (before.get(key, defaults.get(key)), now.get(key, defaults.get(key)))
        for key in {**before, **now}
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def covered_steps(cache: CacheManifest, run: Contexts) -> range:
    """Returns the steps of a run, counted from 0, to whose samples a cache has all answers."""
    steps = [
        step
        for stage, samples in enumerate(usable_samples(cache, run))
        if samples
        for step in (
            _first_whole(run.plan, stage, samples.start),
            _last_whole(run.plan, stage, samples.stop),
        )
    ]
    return range(min(steps), max(steps)) if steps and min(steps) < max(steps) else range(0)


def _first_whole(plan: StagePlan, stage: int, sample: int) -> int:
    """Returns the first step of a stage, all samples of which are at or after a sample."""
    step = plan.step_of(stage, sample)
    return step if plan.samples_at(step).start == sample else step + 1


def _last_whole(plan: StagePlan, stage: int, end: int) -> int:
    """Returns the end of the steps of a stage, all samples of which are before `end`."""
    step = plan.step_of(stage, end - 1)
    return step + 1 if plan.samples_at(step).stop == end else step


def check_coverage(caches: Mapping[str, CacheManifest], run: Contexts, steps: range) -> None:
    """Raises InputError unless each of some steps of a run is in one of the caches.

    Args:
        caches: The caches by folder.
        run: The contexts of the run.
        steps: The steps to cover, counted from 0.
    """
    covered = [covered_steps(cache, run) for cache in caches.values()]
    first = steps.start
    while first < steps.stop and (ends := [part.stop for part in covered if first in part]):
        first = max(ends)
    if first >= steps.stop:
        return
    later = [part.start for part in covered if part and part.start > first]
    last = min([*later, steps.stop])
    shared = {folder: shared_steps(cache, run) for folder, cache in caches.items()}
    folder = max(shared, key=lambda name: shared[name])
    restore = ""
    if shared[folder] > first:
        begin, end = caches[folder].steps
        wrong = (
            f"it has the answers for steps {begin} to {end} of its recipe, but this run also needs "
            f"those for its steps {first + 1} to {last}"
        )
    else:
        restore, wrong = "Restore the setting, or t", "this run reads other contexts"
        if shared[folder]:
            wrong = (
                f"this run shares the contexts of its steps 1 to {shared[folder]}, but not those "
                f"of steps {first + 1} to {last}"
            )
        wrong += f", because {next(differences(caches[folder], run))}"
    raise InputError(
        f"{KEY}={folder}: {wrong}. {restore or 'T'}each these steps with steps={first + 1}..{last} "
        f"into another folder, and give {KEY}=[{','.join(caches)},OTHER]."
    )


def differences(cache: CacheManifest, run: Contexts) -> Iterator[str]:
    """Yields what differs between the contexts of a cache and those of a run, in their order."""
    if cache.tokenizer != run.tokenizer:
        yield (
            f"it is from another tokenizer (fingerprint {cache.tokenizer[:12]}, but that of the "
            f"run's corpus is {run.tokenizer[:12]})"
        )
    ours, theirs = run.order, cache.sample_order()
    for name, was, now in (
        ("seed", theirs.seed, ours.seed),
        ("recipe.atom_tokens", theirs.atom, ours.atom),
    ):
        if was != now:
            yield f"it was made with {name}={was}, not {now}"
    for number, stage in enumerate(run.plan.stages):
        if number >= len(theirs.stages):
            yield f"its recipe ends before the stage '{stage.name}'"
            return
        past, key = theirs.stages[number], f"recipe.stages.{stage.name}"
        if past.seq_len != stage.seq_len:
            yield f"it was made with {key}.seq_len={past.seq_len}, not {stage.seq_len}"
        if cache.data[number] != run.data[number]:
            yield (
                f"its stage '{stage.name}' reads another corpus or edition (fingerprint "
                f"{cache.data[number][:12]}, not {run.data[number][:12]})"
            )
        for name, (was, now) in _changed(cache, run, number).items():
            yield f"it was made with {key}.{name}={was}, not {now}"
        if _shares(past.weights) != _shares(stage.weights):
            yield f"it was made with {key}.mixture={past.weights}, not {stage.weights}"
        if (past.samples, past.planned_samples) != (stage.samples, stage.planned_samples):
            yield f"it was made with {key}.tokens={past.tokens}, not {stage.tokens}"
    yield "its recipe differs"


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {source: weight / total for source, weight in weights.items() if weight}


def usable_samples(cache: CacheManifest, run: Contexts) -> list[range]:
    """Returns the samples of each stage of a run to which a cache has the answers."""
    shared = samples_of(run.plan, range(shared_steps(cache, run)))
    return [
        range(max(first, begin), min(last, end))
        for (first, last), (begin, end) in zip(cache.samples, shared, strict=False)
    ]
