"""Datasets of the Hugging Face Hub, or of another server that HF_ENDPOINT names."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.corpora.landing import LandingFile
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.store import Store

HUB_SCHEME = "hf://"
_DATASETS = "hf://datasets/"


@dataclass(frozen=True)
class HubFile(LandingFile):
    """A file of a dataset, at one commit.

    path: in the dataset's repository.
    sha256: as the Hub says; "" where it does not.
    """

    dataset: str
    commit: str
    path: str
    sha256: str

    @property
    def origin(self) -> str:
        return f"{_DATASETS}{self.dataset}@{self.commit[:12]}/{self.path}"

    def digest(self) -> str:
        return self.sha256

    def copy_to(self, inbox: Store, key: str) -> str:
        """Download the file and put it into the inbox; return its sha256.

        Raises InputError for one that cannot be had, or has another digest than the Hub said.
        """
        from huggingface_hub import hf_hub_download

        with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
            with _plain_errors(self.origin):
                local = hf_hub_download(
                    self.dataset,
                    self.path,
                    repo_type="dataset",
                    revision=self.commit,
                    local_dir=scratch,
                )
            with Path(local).open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if self.sha256 not in ("", digest):
                raise InputError(
                    "land",
                    self.origin,
                    f"it came with sha256 {digest}, and the Hub says {self.sha256}",
                    "land it again",
                    code="file-changed",
                )
            inbox.upload(Path(local), key)
        return digest


def list_dataset(address: str) -> Iterator[HubFile]:
    """Yield the files of a dataset, or those below a folder of it, at its newest commit.

    Args:
        address: `hf://datasets/OWNER/NAME`, with `@REVISION` and a folder where wanted.

    Raises:
        InputError: another address, or a dataset that cannot be read.
    """
    owner, _, rest = address.removeprefix(_DATASETS).partition("/")
    name, _, folder = rest.rstrip("/").partition("/")
    name, _, revision = name.partition("@")
    if not address.startswith(_DATASETS) or not owner or not name:
        raise InputError(
            "land",
            address,
            "it is no address of a dataset",
            "write hf://datasets/OWNER/NAME, with @REVISION and /FOLDER behind it where wanted",
            code="hub-address-invalid",
        )
    dataset = f"{owner}/{name}"
    # Imported here: it takes long, and most landings need it not.
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    with _plain_errors(address):
        commit = api.dataset_info(dataset, revision=revision or None).sha or revision
        tree = api.list_repo_tree(
            dataset, folder or None, recursive=True, revision=commit, repo_type="dataset"
        )
        entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    for entry in entries:
        below = entry.path.removeprefix(f"{folder}/") if folder else entry.path
        sha256 = entry.lfs.sha256 if entry.lfs else ""
        yield HubFile(below, entry.size, dataset, commit, entry.path, sha256)


@contextmanager
def _plain_errors(place: str) -> Iterator[None]:
    """Raise what the Hub's client raises as an InputError that names the place."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError

    try:
        yield
    except GatedRepoError as error:
        raise _unreadable(
            place, error, "ask for access on its page, and set HF_TOKEN to a token that has it"
        ) from error
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        remedy = "correct the address; HF_TOKEN gives access to private datasets"
        raise _unreadable(place, error, remedy) from error
    except Exception as error:  # of the library that the client sends its requests with
        remedy = "make the server reachable; HF_ENDPOINT names another one"
        raise _unreadable(place, error, remedy) from error


def _unreadable(place: str, error: Exception, remedy: str) -> InputError:
    words = " ".join(str(error).split())[:300] or type(error).__name__
    return InputError("land", place, f"it cannot be read: {words}", remedy, code="place-unreadable")
