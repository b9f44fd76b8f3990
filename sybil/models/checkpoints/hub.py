"""Fetches a repository of the hub, at the revision that is asked for, as a local folder. It is fetched once, and found
in the hub's cache where there is no network. The hub's library reads access tokens: HF_TOKEN, or `hf auth login`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sybil.errors import GatedModel, HubUnreachable, NotAModel, SybilError, one_line, shown
from sybil.progress import download_bar

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
REASON = 120
"""The most letters of another library's reason in a message."""


def fetch(
    name: str, files: Sequence[str], revision: str | None = None, progress: bool | None = None, kind: str = "model"
) -> Path:
    """The folder of a repository. revision: a branch, a tag or a commit; None is the main branch. files: patterns of
    the file names that are wanted. progress: see sybil.progress. kind: what the repository should hold, for messages.

    Raises NotAModel, GatedModel or HubUnreachable."""
    from huggingface_hub import snapshot_download

    with asked(name, revision, kind):
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=[*files], tqdm_class=download_bar(progress))
        )


@contextmanager
def asked(name: str, revision: str | None = None, kind: str = "model") -> Iterator[None]:
    """A context for calls to the hub's library about a repository. Whatever the library raises becomes one of fetch()'s
    errors, with a message of one line. The arguments are fetch()'s."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        SafetensorsParsingError,
    )

    page = f"{constants.ENDPOINT}/{name}"
    try:
        yield
    except SybilError:
        raise
    except GatedRepoError:
        raise GatedModel(
            f"the {kind} {name!r} is gated: ask for access at {page}, then log in by `hf auth login` or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise NotAModel(
            f"the {kind} {name!r} has no revision {shown(revision)}: give a branch, a tag or a commit of {page}/commits"
        ) from None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise NotAModel(
            f"the hub gives no {kind} {name!r} ({_reason(error)}): check the id; for a private one log in by "
            "`hf auth login` or set HF_TOKEN"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        named = repr(name) if revision is None else f"{name!r} at revision {shown(revision)}"
        # an IncompleteSnapshotError, which older versions of the hub's library don't have
        cached = f"has only a part of {named}" if hasattr(error, "snapshot_path") else f"lacks {named}"
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub can't be reached"
        remedy = "unset it where there is a network" if constants.HF_HUB_OFFLINE else "check the network"
        raise HubUnreachable(
            f"{why} and the hub's cache {cached}: {remedy}, give a folder, or use the embedded pair 'stdlib'"
        ) from None
    except EntryNotFoundError as error:
        raise NotAModel(f"the {kind} {name!r} lacks a file ({_reason(error)}): see {page} for those it has") from None
    except SafetensorsParsingError as error:
        raise NotAModel(f"the {kind} {name!r} has weights with a broken header ({_reason(error)}): report it") from None
    except Exception as error:  # the hub's client, the network or the disk may raise anything
        raise HubUnreachable(
            f"the {kind} {name!r} can't be fetched ({_reason(error)}): check the network and the disk, give a folder, "
            "or use the embedded pair 'stdlib'"
        ) from None


def _reason(error: Exception) -> str:
    """The first line of another library's error."""
    lines = str(error).strip().split("\n")
    return one_line(f"{type(error).__name__}: {lines[0]}", REASON)
