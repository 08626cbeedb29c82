"""Starts the runs of a study as SLURM jobs."""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import OmegaConf

from conf.errors import EXIT_FAILED
from launch import training
from launch.slurm.settings import SlurmConfig, read_cluster
from launch.slurm.submit import active_jobs, need_slurm, submit_run
from launch.studies.commands import RunCommand
from launch.studies.results import is_finished

LOOK_SECONDS = 5.0
"""Interval at which a waiting study asks SLURM for its jobs."""


class Jobs:
    """The jobs of the runs, one each, as `python -m launch slurm` submits them.

    Args:
        folder: The folder of the runs.
        config: The resources of each job.
    """

    def __init__(self, folder: Path, config: SlurmConfig) -> None:
        need_slurm()
        self.folder = folder
        self.config = config
        self.cluster = read_cluster(config.cluster)
        self.submitted: set[str] = set()

    def active(self, names: list[str]) -> set[str]:
        """Returns the names of the runs whose job has not been reported as ended."""
        self.submitted |= {name for name in names if active_jobs(self.folder / name)}
        return set(self.submitted)

    def start(self, command: RunCommand) -> str:
        """Submits the job of a run, and returns its number and the path of its log."""
        settings = command.settings
        config = OmegaConf.to_yaml(OmegaConf.structured(settings))
        run = training.Training(
            list(command.overrides), config, settings.name, Path(settings.run_dir)
        )
        job = submit_run(self.config, self.cluster, run)
        self.submitted.add(command.run.name)
        return f"job {job}, log {run.run_dir / 'slurm' / 'job.log'}"

    def wait(self) -> dict[str, tuple[int, str]]:
        """Waits a little, and returns exit codes and causes of the jobs that have ended."""
        time.sleep(LOOK_SECONDS)
        ended = {}
        for name in sorted(self.submitted):
            if not active_jobs(self.folder / name):
                self.submitted.remove(name)
                code = 0 if is_finished(self.folder / name) else EXIT_FAILED
                ended[name] = code, "the job ended without a cause"
        return ended

    def stop(self) -> None:
        """Leaves the jobs as they are: they continue without the study's process."""
        if self.submitted:
            print(f"{len(self.submitted)} jobs continue. The same command continues the study.")
