"""The Hub: the user's token, what its refusals mean, and files of a data set."""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from forge import files
from forge.errors import BAD_INPUT, ENVIRONMENT, ForgeError, one_line

PATIENCE = 30  # seconds
RECORDS = ("**/*.parquet", "**/*.jsonl", "**/*.json", "**/*.csv", "**/*.tsv")
# What the library datasets keeps beside the records, and the scripts that older data sets were read with.
NO_RECORDS = ("**/*.py", "**/dataset_infos.json", "**/dataset_info.json", "**/dataset_dict.json", "**/state.json")


def token() -> str | None:
    """HF_TOKEN or HUGGING_FACE_TOKEN from the environment or .env; it goes nowhere but into the request."""
    from dotenv import dotenv_values

    known = {**dotenv_values(".env"), **os.environ}
    return known.get("HF_TOKEN") or known.get("HUGGING_FACE_TOKEN") or None


def bound_waits(seconds: float = PATIENCE) -> None:
    """Requests of huggingface_hub that set no limit of their own end after so many seconds without a byte.

    Its client has none: a server that takes the request and never answers would hold a phase for ever. The library
    makes a new client after a broken connection, so it is given what makes them.
    """
    import httpx2
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import hf_request_event_hook

    def bound(request: httpx2.Request) -> None:
        limits = request.extensions.get("timeout") or {}
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: limits.get(kind) or seconds for kind in kinds}

    def client() -> httpx2.Client:  # as the library's own, and `bound`
        return httpx2.Client(
            event_hooks={"request": [hf_request_event_hook, bound]}, follow_redirects=True, timeout=None
        )

    set_client_factory(client)


def explain(error: Exception, name: str, revision: str | None, keys: str, again: str, address: str = "") -> Exception:
    """What the Hub refused, and what to do. huggingface_hub may wrap the refusal in another error.

    `keys` are the config's that name the repository, `again` the command that goes on, `address` the repository's
    page below huggingface.co.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    while not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, GatedRepoError):
        return ForgeError(
            f"{name} is gated: the Hub wants your consent first",
            f"accept its terms on huggingface.co/{address or name}, then put HF_TOKEN=... into .env",
            ENVIRONMENT,
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return ForgeError(
            f"the Hub has no {name}{'@' + revision if revision else ''} for you: {one_line(error)[:120]}",
            f"check {keys}; a private {'data set' if address else 'model'} needs HF_TOKEN in .env",
            BAD_INPUT,
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return error
    return ForgeError(
        f"the Hub cannot be reached or refused: {type(error).__name__}: {one_line(error)[:160]}",
        f"check the network, HF_ENDPOINT and HF_TOKEN, and run {again} again: it resumes",
        ENVIRONMENT,
    )


def fetch(
    repository: str, revision: str, include: Sequence[str] = RECORDS, exclude: Sequence[str] = ()
) -> list[tuple[str, Path]]:
    """Files of records of a Hub data set at one commit: their names there and where they lie, sorted by name.

    They come through the Hugging Face cache: what is there is not loaded again, nor is the network asked. `include`
    and `exclude` are globs as in data.sources. No script of a data set is fetched or run. Raises ForgeError: 2 for a
    name or commit that the Hub does not have, or one without records, 7 for a gated data set and a missing network.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ForgeError(
            f"{repository}: the revision {ascii(revision[:50])} is no commit hash: what it names may change",
            "take the 40 hexadecimal digits from the data set's page: Files, History",
        )
    wanted = {
        "repo_id": repository,
        "repo_type": "dataset",
        "revision": revision,
        "token": token(),
        "allow_patterns": _both(include),
        "ignore_patterns": [".*", "*/.*", *_both(NO_RECORDS), *_both(exclude)],
    }
    bound_waits()
    try:
        listed = snapshot_download(dry_run=True, **wanted)
        size = sum(item.file_size or 0 for item in listed if item.will_download)
        files.require_free_space(Path(constants.HF_HUB_CACHE), size, f"the data set {repository}")
        snapshot = Path(snapshot_download(**wanted))
    except HFValidationError:
        raise ForgeError(f"{ascii(repository)} is no name of a data set", "write hub:org/name") from None
    except (HfHubHTTPError, OSError) as error:
        raise explain(
            error, repository, revision, "data.sources: path and revision", "make dataset", f"datasets/{repository}"
        ) from None
    names = sorted(item.filename for item in listed)
    if not names:
        raise ForgeError(
            f"{repository}@{revision[:8]} holds no file of records ({', '.join(include)})",
            "change include, or choose a data set with Parquet, JSONL, JSON or CSV files: scripts are never run",
        )
    return [(name, snapshot / name) for name in names]


def _both(globs: Sequence[str]) -> list[str]:
    """`**/` also stands for no folder at all, as in data.sources."""
    return list(dict.fromkeys(form for glob in globs for form in (glob, glob.removeprefix("**/"))))
