"""Uploads to the Hub: the only module that sends anything over the network.

The token goes to huggingface_hub and nowhere else: no file, log line or error has it.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ti_flax.hub import client
from ti_flax.runtime.errors import UserError, one_line

_log = logging.getLogger(__name__)
# Seconds before each new attempt; huggingface_hub itself repeats single requests.
_WAITS = (1.0, 2.0, 4.0, 8.0)
_MAX_WAIT = 60.0


def find_token(given: str | None) -> str:
    """The token given, or that of the environment (HF_TOKEN) or of the login.

    Raises:
        UserError: when there is none.
    """
    import huggingface_hub

    token = given or huggingface_hub.get_token()
    if token is None:
        raise UserError(
            "push_to_hub: expected a Hub token, found none; run `hf auth login` or set "
            "HF_TOKEN (a token with write access, huggingface.co/settings/tokens)"
        )
    return token


def check(repo_id: str, token: str | None) -> None:
    """Finds, before a run, what would keep its result from being uploaded after it.

    A Hub that cannot be reached now may be there in an hour: that is only a warning.

    Raises:
        UserError: when there is no token, the Hub refuses it, or `repo_id` is none.
    """
    import huggingface_hub
    from huggingface_hub import errors, utils

    try:
        utils.validate_repo_id(repo_id)
    except errors.HFValidationError as error:
        reason = one_line(error)
        raise UserError(
            f"hub_model_id: expected a repository (owner/name or name), {reason}"
        ) from error
    token = find_token(token)
    try:
        huggingface_hub.HfApi(token=token).whoami()
    except Exception as error:  # whichever library the client is built on
        if _status(error) in (401, 403):
            raise UserError(_refused(_status(error))) from error
        reason = _reason(error, token)
        _log.warning("push_to_hub: the Hub cannot be reached now (%s)", reason)


def push(
    folder: Path,
    files: Sequence[Path],
    repo_id: str,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Uploads `files` of a concept's folder in one commit; the repository's address.

    The repository, `owner/name` or `name` below the token's user, is made when missing.
    What may pass (429, 5xx, a dropped connection) is tried five times in all, with
    growing waits.

    Raises:
        UserError: why, and how to push later; the folder stays as it is.
    """
    import huggingface_hub

    token = find_token(token)
    api = huggingface_hub.HfApi(token=token)
    size = sum(path.stat().st_size for path in files)
    _log.info("uploading %d files, %d kB, to %s", len(files), size // 1000, repo_id)

    def upload() -> str:
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [
            huggingface_hub.CommitOperationAdd(
                path.relative_to(folder).as_posix(), str(path)
            )
            for path in files
        ]
        api.create_commit(
            repository.repo_id, operations, commit_message="Upload a learned concept"
        )
        return str(repository)

    for wait in (*_WAITS, None):
        try:
            with client.is_silent():
                address = upload()
        except Exception as error:  # whichever library the client is built on
            reason = _reason(error, token)
            if wait is None or not _may_pass(error):
                raise UserError(_failed(folder, repo_id, private, reason)) from None
            wait = _asked_for(error) or wait
            _log.warning("upload: %s; trying again in %.0f s", reason, wait)
            time.sleep(wait)
        else:
            _log.info("uploaded to %s", address)
            return address
    raise AssertionError("the last attempt returns or raises")


def _failed(folder: Path, repo_id: str, private: bool, reason: str) -> str:
    command = f"python -m ti_flax.push {folder} --hub_model_id {repo_id}"
    return (
        f"the upload to {repo_id} failed: {reason}; the result is whole in {folder}, "
        f"push it later: {command}{' --hub_private_repo' if private else ''}"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it: the client wraps those of single files."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The status of the HTTP response that an error is about."""
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return int(status)
    return None


def _may_pass(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    # httpx's errors, by whichever of its names the client imports it; and an answer of
    # a proxy that is no JSON, which the client reads before its status.
    return any(
        isinstance(cause, OSError | json.JSONDecodeError)
        or type(cause).__module__.startswith("httpx")
        for cause in _causes(error)
    )


def _asked_for(error: BaseException) -> float | None:
    """The seconds that the Hub asks to wait (Retry-After), within reason."""
    for cause in _causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", {})
        text = headers.get("Retry-After", "")
        if text.isdecimal():
            return min(float(text), _MAX_WAIT)
    return None


def _refused(status: int | None) -> str:
    return (
        f"the Hub refused the token ({status}): expected one with write access; run "
        "`hf auth login` or set HF_TOKEN"
    )


def _reason(error: BaseException, token: str) -> str:
    status = _status(error)
    if status in (401, 403):
        return _refused(status)
    root = [*_causes(error)][-1] if status is None else error
    # Before it is cut: half a token must not stay.
    return one_line(f"{type(root).__name__}: {root}".replace(token, "..."))
