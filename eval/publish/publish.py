"""`python -m eval publish`: puts a model and steps of its training on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from conf.errors import InputError
from conf.text import format_bytes
from eval.find_model import find_model
from eval.publish.config import PublishConfig
from eval.publish.contents import Contents, check_leaks, contents_of
from eval.publish.hub import MAIN, Hub


def publish(config: PublishConfig) -> None:
    """Publishes a model folder on `main`, and steps of a run on branches.

    Each revision is checked before it is sent.

    Raises:
        InputError: A file has a secret or a path of a home folder, something is missing, or the Hub
            denies access.
        RunAborted: The connection was lost; the same command continues.
    """
    check_name(config.repo)
    hub = Hub(config.repo)
    contents = None
    if config.model is not None:
        contents = contents_of(
            model_folder(config.model), config.repo, MAIN, config.gguf, config.results
        )
        print_contents(contents, MAIN)
        check_leaks(contents.files, f"model={config.model}")
    if not config.dry_run:
        hub.prepare(config.private)
    if contents is not None and not config.dry_run:
        send(hub, contents, MAIN)
    for step in config.steps:
        revision = f"step-{step}"
        contents = contents_of(step_folder(config, step), config.repo, revision)
        print_contents(contents, revision)
        check_leaks(contents.files, f"steps={config.steps}")
        if not config.dry_run:
            hub.branch(revision)
            send(hub, contents, revision)
    if config.dry_run:
        print("dry_run=true: nothing was sent.")
    else:
        print(hub.address)


def check_name(repo: str) -> None:
    """Raises InputError if the name of a repository is not an owner and a name."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(
            f"repo={repo}: not a name on the Hub ({str(error).rstrip('.')}). Give owner/name."
        ) from None
    if "/" not in repo:
        raise InputError(f"repo={repo}: the owner is missing. Give owner/name.")


def print_contents(contents: Contents, revision: str) -> None:
    """Prints the files of a revision with their sizes, and what is left out."""
    width = max(len(file.name) for file in contents.files)
    print(f"{revision}:")
    for file in contents.files:
        print(f"  {file.name:{width}}  {format_bytes(file.size)}")
    if contents.left_out:
        print(f"  not published: {', '.join(contents.left_out)}")


def send(hub: Hub, contents: Contents, revision: str) -> None:
    """Uploads the files of a revision, and prints each part that has arrived."""
    for name, is_new in hub.upload(contents.files, revision):
        print(f"{revision}: {name} {'published' if is_new else 'was already there'}", flush=True)


def model_folder(model: str) -> Path:
    """Returns the folder of `model`: a model folder, or the export of a run or a checkpoint.

    Raises:
        InputError: It is none of these.
    """
    if not Path(model).exists():
        raise InputError(f"model={model}: the folder does not exist. Give a model folder or a run.")
    return find_model(model)


def step_folder(config: PublishConfig, step: int) -> Path:
    """Returns the export of a step in the run folder, and makes it if there is none.

    Raises:
        InputError: The run has no such step, or it cannot be exported.
    """
    assert config.run is not None
    checkpoint = Path(config.run) / "checkpoints" / f"step_{step}"
    if step and not checkpoint.is_dir():
        raise InputError(
            f"steps={config.steps}: {config.run} has no checkpoint of step {step}. Remove the "
            "step, or restore its checkpoint."
        )
    return find_model(str(checkpoint), "steps")
