"""Finds the checkpoint of a trunk for a branch that has none of its own, the same on all ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

from conf.errors import InputError
from data_pipeline.store.storage import is_remote
from pretrain.branches.holds import hold
from pretrain.branches.trunk import Trunk, known_trunk, mirror_of
from pretrain.checkpoints import files, mirror
from pretrain.checkpoints.files import CheckpointError
from pretrain.checkpoints.find import Found, on_main, verify_together
from pretrain.config import PretrainConfig
from pretrain.processes import Processes

DOWNLOADED = "trunk"
"""Subfolder of the run folder of a branch for a checkpoint from the mirror, until it is loaded."""


def known_on_all_ranks(config: PretrainConfig, processes: Processes) -> Trunk:
    """Returns the trunk of a branch. Every rank must call it; rank 0 reads the files."""
    branch_from, run_dir = str(config.branch_from), Path(config.run_dir)
    return on_main(lambda: known_trunk(branch_from, run_dir, config.checkpoint.copy_to), processes)


def checkpoint_of_trunk(trunk: Trunk, run_dir: Path, processes: Processes) -> Found:
    """Returns the verified checkpoint of a trunk, in place or downloaded from its mirror.

    Every rank must call it. A damaged checkpoint of the trunk is not touched.

    run_dir: The run folder of the branch.

    Raises:
        CheckpointError: There is no complete checkpoint of the step any more.
    """
    problems = []
    if processes.is_main and (warning := hold(trunk.run, trunk.step, run_dir)):
        print(warning, flush=True)
    if not is_remote(trunk.run):
        path = Path(trunk.run) / "checkpoints" / f"step_{trunk.step}"
        if on_main(path.is_dir, processes):
            problem = verify_together(path, processes)
            if problem is None:
                return path, files.read_manifest(path)
            problems.append(problem)
        else:
            problems.append(f"{path} does not exist any more.")

    def download() -> tuple[str | None, str | None]:
        url = mirror_of(trunk.run) or trunk.config.get("checkpoint", {}).get("copy_to")
        if url is None:
            return None, None
        folder = run_dir / DOWNLOADED
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            return str(mirror.download(folder, url, trunk.step)), None
        except (InputError, OSError) as error:
            reason = str(error).rstrip(".")
            return None, f"The mirror {url} has no complete copy of it ({reason})."

    downloaded, problem = on_main(download, processes)
    if downloaded is not None:
        problem = verify_together(Path(downloaded), processes)
        if problem is None:
            return Path(downloaded), files.read_manifest(Path(downloaded))
    problems += [problem] if problem is not None else []
    if processes.is_main:
        remove_download(run_dir)
    raise CheckpointError(
        f"branch_from={trunk.label}: the branch has no checkpoint yet and needs that of the "
        f"trunk, but {' '.join(problems)} Restore that checkpoint, or start from another step "
        "with another run_dir."
    )


def remove_download(run_dir: Path) -> None:
    """Removes the downloaded checkpoint, once it is loaded."""
    shutil.rmtree(run_dir / DOWNLOADED, ignore_errors=True)
