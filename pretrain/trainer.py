"""The training loop.

`setup.prepare` builds a run, `Trainer` runs its steps, and hooks do everything around a step. In
step n the trainer and the hooks are called in this order:

    hooks.before_step              the stage's settings are applied
    train_step                     per micro-batch: objective, backward
        hooks.before_optimizer_step    after gradients are reduced, scaled and clipped
        optimizer.step                 unless the step is bad (health/bad_steps.py)
    hooks.on_record                the record of step n - 1, once its numbers are on the host
    hooks.after_step               validation, checkpoint, stop requests

Losses and gradients are summed, and divided once by the number of targets of the global batch, so
that every layout takes the same step. Example: a batch of three samples with 10, 20 and 30 targets
on two ranks, with micro-batches of one sample:

    rank 0     sample 0, then sample 1     loss sums   L0 + L1     10 + 20 targets
    rank 1     sample 2, then a blank      loss sums   L2 + 0      30 targets
    all ranks                              loss = (L0 + L1 + L2) / 60, and likewise the gradient
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from data_pipeline.sampling.batches import Batch
from data_pipeline.sampling.fim_transform import fim_record
from model.flops import FLOP_CONVENTION, forward_flops, parameters, training_flops
from pretrain.branches.start import remove_download
from pretrain.checkpoints.read import load
from pretrain.config import PretrainConfig
from pretrain.hardware import (
    compute_dtype,
    fp8_peak,
    memory_record,
    peak_flops,
    reset_memory_peak,
)
from pretrain.health.bad_steps import BadSteps
from pretrain.hooks import Hook, PendingStep, hook_states, load_hook_states
from pretrain.loader import MASK64, StepData
from pretrain.objectives import taught
from pretrain.optim.clip import scale_and_clip
from pretrain.optim.schedule import learning_rate
from pretrain.parallel import accumulate_gradients
from pretrain.parallel.cuda_graphs import CudaGraphs
from pretrain.parallel.mesh import all_reduce_sum
from pretrain.processes import Processes, barrier
from pretrain.run import Run
from pretrain.stage_network import network_after
from pretrain.step_numbers import LapClock, StepNumbers


class Trainer:
    """Runs the training steps of a plan; `hooks.TrainerView` describes its public attributes."""

    def __init__(
        self, config: PretrainConfig, processes: Processes, run: Run, bad_steps: BadSteps
    ) -> None:
        self.config = config
        self.processes = processes
        self.manifest, self.plan, self.order = run.manifest, run.plan, run.order
        self.layout, self.model, self.optimizer = run.layout, run.model, run.optimizer
        self.loader, self.checkpoints = run.loader, run.checkpoints
        self.editions = run.editions
        self.trunk, self.at_fork = run.trunk, run.at_fork
        self.dp_rank = self.layout.dp.get_local_rank()
        self.sources = torch.arange(len(self.order.sources), device=processes.device)
        self.dp_size = self.layout.dp.size()
        self.objective = run.objective
        self.lesson = taught(run.objective)
        graphs = config.parallel.cuda_graphs
        self.graphs = CudaGraphs(self.model, self._forward_backward) if graphs else None
        self.bad_steps = bad_steps
        self.hooks: list[Hook] = []
        self.stopping: str | None = None
        self.must_save = False
        self.data_wait_seconds = 0.0
        self.step = run.step
        self._resumed_from = run.metadata, run.checkpoint
        self.attention = run.attention
        self.documents = run.documents
        self.pending: PendingStep | None = None
        self._clock = LapClock(processes.device)
        dtype = compute_dtype(config.precision)
        peak, self.peak_source = peak_flops(processes.device, dtype)
        peaks = torch.tensor([peak, fp8_peak(processes.device) or 0.0], device=processes.device)
        ranks = self.layout.cp.size() * self.layout.tp.size()
        summed = all_reduce_sum(peaks, self.layout.dp).tolist()
        self.peak, self.fp8_peak = (ranks * peak for peak in summed)

    def train(self) -> None:
        """Trains until the end of the plan, `stop_after`, or a stop request."""
        reset_memory_peak(self.processes.device)
        total = self.plan.total_steps
        end = total if self.config.stop_after is None else min(self.config.stop_after, total)
        load_hook_states(self.hooks, *self._resumed_from)
        if self.at_fork:
            barrier()  # other ranks may still read the checkpoint
            if self.processes.is_main:
                remove_download(Path(self.config.run_dir))
        for hook in self.hooks:
            hook.on_start(self)
        event = "branch" if self.at_fork else "resume" if self.step else "start"
        self.publish({"kind": "event", "event": event, "dp_size": self.dp_size})
        self._clock.restart()
        while self.step < end and not self.stopping:
            stage = self.plan.at(self.step)
            if self.step == stage.first_step:
                record = {"kind": "event", "event": "stage", "stage": stage.name}
                self.publish(record | {"seq_len": stage.seq_len})
            for hook in self.hooks:
                hook.before_step(self)
            previous, self.pending = self.pending, self.train_step()
            self.step += 1
            if previous is not None:
                self._publish_step(previous)
            self.must_save |= self.step == end
            for hook in self.hooks:
                hook.after_step(self)
        self.flush()
        event = "finish" if self.step == total else "stop"
        self.publish({"kind": "event", "event": event, "cause": self.stopping})
        for hook in self.hooks:
            hook.on_end(self)
        self.loader.close()

    def train_step(self) -> PendingStep:
        """Runs one optimizer step and returns its numbers, which are still on the device."""
        stage = self.plan.at(self.step)
        data = self.loader.get(self.step)
        self.data_wait_seconds = data.wait_seconds
        device, dp = self.processes.device, self.layout.dp
        counts = all_reduce_sum(data.counts.to(device, non_blocking=True), dp)
        sums = torch.zeros(len(self.sources) + len(self.objective.metrics), device=device)
        # FSDP averages over its ranks. A fixed divisor keeps the sums small until the number of
        # targets of the whole batch is known.
        batch_tokens = self.plan.batch_tokens(self.step)
        weight = self.layout.data.size() / batch_tokens
        for index, batch in enumerate(data.micro_batches):
            last = index + 1 == len(data.micro_batches)
            accumulate_gradients(self.model, self.config.parallel, last)  # type: ignore[arg-type]
            by_sample, *metrics = self._run_micro_batch(batch, weight, index == 0)
            losses = by_sample @ (batch.sources[:, None] == self.sources).to(sums.dtype)
            sums += torch.cat((losses, *(metric[None] for metric in metrics)))
        all_reduce_sum(sums, dp)
        targets = counts[2 : 2 + len(self.sources)].sum()
        scale = batch_tokens / targets.float()
        optim = self.config.optim
        grad_norm = scale_and_clip(self.model.parameters(), scale, optim.max_grad_norm)
        loss = sums[: len(self.sources)].sum() / targets
        verdict = self.bad_steps.judge(stage.name, self.step + 1, loss, grad_norm)
        self.optimizer.found_inf = self.bad_steps.skips(verdict)  # type: ignore[attr-defined]
        rate = learning_rate(optim, self.plan, self.plan.tokens_at(self.step + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        for hook in self.hooks:
            hook.before_optimizer_step(self)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        numbers = StepNumbers(counts, sums, grad_norm, verdict)
        return PendingStep(self._record(data, rate), numbers, self._clock.lap())

    def _run_micro_batch(self, batch: Batch, weight: float, is_first: bool) -> tuple[Tensor, ...]:
        """Adds the gradients of a batch, and returns its losses by sample and the metrics."""
        if self.graphs is not None:
            return self.graphs(batch, weight, is_first, self.plan.at(self.step).name)
        return self._forward_backward(batch, weight)

    def _forward_backward(self, batch: Batch, weight: float) -> tuple[Tensor, ...]:
        loss, by_sample, metrics = self.objective(self.model, batch)
        (loss * weight).backward()
        return by_sample, *metrics

    def _record(self, data: StepData, rate: float) -> dict[str, Any]:
        """Returns the values of the current step that are known without the device."""
        stage = self.plan.at(self.step)
        samples = self.plan.samples_at(self.step)
        consumed = self.order.consumed(stage.index, samples.stop)
        return {
            "kind": "train",
            "step": self.step + 1,
            "tokens": self.plan.tokens_at(self.step + 1),
            "stage": stage.name,
            "seq_len": stage.seq_len,
            "learning_rate": rate,
            "data_wait_seconds": data.wait_seconds,
            "batch_tokens": self.plan.batch_tokens(self.step),
            "consumed_tokens": consumed,
            "consumed_epochs": self.order.epochs_of(stage.index, consumed),
            "first_sample": samples.start,
            "samples": len(samples),
            "time": time.time(),
        }

    def _publish_step(self, pending: PendingStep) -> None:
        """Adds the numbers from the device to the record of a step, and sends it to all hooks."""
        numbers, names = pending.numbers.read(), self.order.sources
        seconds = pending.lap.seconds()
        keys, digest, *counts = numbers.counts
        teacher = None if self.lesson is None else self.lesson.network
        teacher_keys = counts.pop() if teacher is not None else 0
        losses, metrics = numbers.sums[: len(names)], numbers.sums[len(names) :]
        targets, ended, fim = (
            counts[: len(names)],
            counts[len(names) : 2 * len(names)],
            counts[2 * len(names) :],
        )
        for source, documents in zip(names, ended, strict=True):
            self.documents[source] += documents
        record, loss, norm = pending.record, sum(losses) / sum(targets), numbers.grad_norm
        flops = training_flops(self.config.model, record["batch_tokens"], keys)
        if teacher is not None:
            flops += forward_flops(teacher, record["batch_tokens"], teacher_keys)
        stage, step = record["stage"], record["step"]
        record |= self.bad_steps.describe(stage, step, numbers.verdict, loss, norm)
        record |= {
            "step_seconds": seconds,
            "tokens_per_second": record["batch_tokens"] / seconds,
            "loss": loss,
            "source_loss": {
                name: loss / count
                for name, loss, count in zip(names, losses, targets, strict=True)
                if count
            },
            **{
                name: metric / sum(targets)
                for name, metric in zip(self.objective.metrics, metrics, strict=True)
            },
            "grad_norm": norm,
            **memory_record(self.processes.device),
            "mfu": flops / seconds / self.peak,
            **self._fp8_utilization(step, flops / seconds),
            "digest": f"{digest & MASK64:016x}",
            "consumed_documents": dict(self.documents),
            **fim_record(names, fim),
        }
        for hook in self.hooks:
            hook.on_record(record)

    def _fp8_utilization(self, step: int, flops_per_second: float) -> dict[str, float]:
        """Returns `mfu_fp8`, the utilization of the GPU's fp8 peak, for a step counted from 1.

        The result is empty for steps without fp8, and if the peak is unknown. `mfu` always refers
        to the bf16 peak, so that precisions can be compared.
        """
        precision = self.config.precision_of(self.plan.at(step - 1))
        if not self.fp8_peak or not precision.startswith("fp8"):
            return {}
        return {"mfu_fp8": flops_per_second / self.fp8_peak}

    def flush(self) -> None:
        """Publishes the pending step. Code that needs that step's record must call this first."""
        pending, self.pending = self.pending, None
        if pending is not None:
            self._publish_step(pending)

    def publish(self, record: dict[str, Any]) -> None:
        """Sends a record to all hooks. The time this takes does not count as part of a step."""
        self.flush()
        common = {"step": self.step, "tokens": self.plan.tokens_at(self.step), "time": time.time()}
        for hook in self.hooks:
            hook.on_record(record | common)
        self._clock.restart()

    def rewind(self, checkpoint: Path, metadata: Mapping[str, Any]) -> None:
        """Loads the weights, optimizer states and hook states of an earlier checkpoint."""
        self.optimizer.found_inf = None  # type: ignore[attr-defined]
        load(checkpoint, self.model, self.optimizer)
        load_hook_states(self.hooks, metadata, checkpoint)

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Returns the metadata that a checkpoint stores in its manifest."""
        stage, samples = self.plan.position(self.step)
        consumed = self.order.consumed(stage, samples)
        epochs = self.order.epochs_of(stage, consumed)
        sources = {
            source: {
                "tokens": consumed[source],
                "epochs": epochs[source],
                "documents": self.documents[source],
            }
            for source in self.order.sources
        }
        name = self.plan.stages[stage].name
        parents = self._resumed_from[0].get("parents", [])
        lineage: dict[str, Any] = {"parents": parents} if parents else {}
        if self.trunk is not None:
            lineage = {"parents": self.trunk.parents, "trunk": self.trunk.to_json()}
        return {
            "tokens": self.plan.tokens_at(self.step),
            "position": {"stage": stage, "name": name, "samples": samples, "sources": sources},
            "world_size": self.processes.world_size,
            "layout": self.layout.sizes(),
            "model": asdict(self.config.model),
            "precision": self.config.precision,
            "documents": self.plan.stages[stage].config.documents,
            "attention": {key: timing.backend for key, timing in self.attention.items()},
            "network": asdict(network_after(self.config.model, self.plan, self.step)),
            **({} if self.lesson is None else {"teacher": dict(self.lesson.identity)}),
            "hooks": hook_states(self.hooks),
            "order": self.order.fingerprint,
            "plan": json.loads(self.order.to_json()),
            "data": self.manifest.fingerprint,
            "editions": self.editions,
            "config": OmegaConf.to_container(OmegaConf.structured(self.config)),
            "torch": torch.__version__,
            **lineage,
        }

    def describe(self) -> str:
        """Returns a description of the run: model, tokens, layout and peak FLOP/s."""
        sizes = [f"{name}={size}" for name, size in self.layout.sizes().items()]
        start = f"resuming after step {self.step}" if self.step else "from fresh weights"
        if not self.step and self.config.init_from:
            start = f"from the weights of {self.config.init_from}"
        if self.at_fork:
            start = f"branching from step {self.step} of {self.trunk and self.trunk.run}"
        if self.lesson is not None:
            start += f", taught by {self.lesson.identity['path']}"
        return (
            f"{self.config.name}: {self.config.model.name}, {parameters(self.config.model):,} "
            f"parameters, {self.plan.total_tokens:,} tokens in {self.plan.total_steps} steps of "
            f"{' to '.join(f'{tokens:,}' for tokens in self.plan.batches)}, {start}\n"
            f"{self.processes.world_size} process(es) on {self.processes.device.type}, "
            f"{' x '.join(sizes)}, {self.config.precision}, attention {self.model.attention}; "
            f"MFU: {FLOP_CONVENTION}, peak {self.peak / 1e12:.2f} TFLOP/s ({self.peak_source})"
        )
