"""Uploads files to a repository of the Hugging Face Hub, in parts that can be continued.

Each file of weights is a commit of its own, and all other files are the last commit. The Hub keeps
what it has received, so that a command that was interrupted continues when it is repeated: files
that are in the repository are skipped, and so is the upload of files that were received but not
committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from conf.errors import EXIT_STORAGE, InputError, RunAborted, first_line
from eval.publish.contents import File

MAIN = "main"
DENIED = (401, 403)


class Hub:
    """A repository on the Hub.

    Attributes:
        repo: Its owner and name.
        address: Its address.
    """

    def __init__(self, repo: str) -> None:
        self.repo = repo
        self.address = f"{constants.ENDPOINT}/{repo}"
        self._api = HfApi(library_name="headwater")

    def prepare(self, private: bool) -> None:
        """Creates the repository if it does not exist.

        Raises:
            InputError: The Hub denies access, or the repository is public, but must be private.
        """
        with self._answers():
            self._api.create_repo(self.repo, private=private, exist_ok=True)
            is_public = self._api.repo_info(self.repo).private is False
        if private and is_public:
            raise InputError(
                f"repo={self.repo}: the repository is public. Make it private on the Hub, or set "
                "private=false to publish to it."
            )

    def branch(self, name: str) -> None:
        """Creates a branch, if there is none, from the first commit, which has no model."""
        with self._answers():
            first = self._api.list_repo_commits(self.repo)[-1].commit_id
            self._api.create_branch(self.repo, branch=name, revision=first, exist_ok=True)

    def upload(self, files: Sequence[File], revision: str) -> Iterator[tuple[str, bool]]:
        """Commits files, weights first.

        Yields:
            What was committed, and whether it was new: False if the repository had it.
        """
        parts = [[file] for file in files if file.is_weights]
        parts.append([file for file in files if not file.is_weights])
        with self._answers():
            before = self._api.repo_info(self.repo, revision=revision).sha
        for part in parts:
            name = part[0].name if part[0].is_weights else f"{len(part)} other files"
            adds = [
                CommitOperationAdd(
                    file.name,
                    file.content if isinstance(file.content, bytes) else str(file.content),
                )
                for file in part
            ]
            with self._answers():
                after = self._api.create_commit(
                    self.repo, adds, commit_message=f"Upload {name}", revision=revision
                ).oid
            yield name, after != before
            before = after

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns what may go wrong in a conversation with the Hub into a sentence."""
        try:
            yield
        except OfflineModeIsEnabled:
            raise InputError(
                f"repo={self.repo}: HF_HUB_OFFLINE is set. Unset it to publish."
            ) from None
        except (LocalTokenNotFoundError, RepositoryNotFoundError, HfHubHTTPError) as error:
            response = getattr(error, "response", None)
            status = None if response is None else response.status_code
            if status is None or status in DENIED or isinstance(error, RepositoryNotFoundError):
                raise InputError(
                    f"repo={self.repo}: the Hub denies access. Log in with hf auth login, or set "
                    "HF_TOKEN to a token that may write to this repository."
                ) from None
            raise self._interrupted(error) from None
        except ValueError as error:  # the card's metadata, as the Hub checks it
            raise InputError(
                f"repo={self.repo}: the Hub does not accept the files "
                f"({' '.join(str(error).split())}). Correct them."
            ) from None
        except Exception as error:  # the classes of errors of the network depend on its library
            raise self._interrupted(error.__cause__ or error) from None

    def _interrupted(self, error: BaseException) -> RunAborted:
        return RunAborted(
            f"repo={self.repo}: the upload was interrupted ({first_line(error)}). Run the same "
            "command again to continue it.",
            EXIT_STORAGE,
        )
