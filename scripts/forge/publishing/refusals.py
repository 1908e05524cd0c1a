"""What the Hub's refusals mean, which of them pass by themselves, and what to do about the others."""

from collections.abc import Iterator

from forge.errors import BAD_INPUT, ENVIRONMENT, INTEGRITY, ForgeError, one_line

PASSING = (429, 500, 502, 503, 504)
TOKENS = "https://huggingface.co/settings/tokens"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made of: the library wraps refusals into errors of its own."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def status(error: BaseException) -> int | None:
    """The HTTP status at the bottom of an error; None where there is none."""
    found = [getattr(getattr(one, "response", None), "status_code", None) for one in _chain(error)]
    return next((code for code in found if code is not None), None)


def passing(error: BaseException) -> bool:
    """Whether another try may go well."""
    import httpx2

    code = status(error)
    if code is not None:
        return code in PASSING
    return any(isinstance(one, httpx2.TransportError | ConnectionError | TimeoutError) for one in _chain(error))


def what(error: BaseException) -> str:
    """The refusal in a few words: no address, for it may be good for an upload."""
    code = status(error)
    return f"the Hub answers {code}" if code else f"no connection to the Hub ({_said(error)})"


def explain(error: BaseException, repo: str) -> ForgeError:
    code = status(error)
    if code == 401:
        return ForgeError(
            "the Hub does not take the token (401)",
            f"put a token of {TOKENS} that may write into .env: HF_TOKEN=...",
            ENVIRONMENT,
        )
    if code == 403:
        return ForgeError(
            f"the token may not write to {repo} (403)",
            f"give it write access to that name on {TOKENS}, or name another repository in upload.repo",
            ENVIRONMENT,
        )
    if code == 404:
        return ForgeError(f"the Hub has no {repo} for this token (404)", "check upload.repo and the token", BAD_INPUT)
    if code in (409, 412):
        return ForgeError(
            f"{repo} was changed by somebody while this was sent: nothing of it is visible",
            "look at its history, then run the same command again: what is up is not sent again",
            INTEGRITY,
        )
    if code == 400:
        return ForgeError(f"the Hub refuses what is sent: {_said(error)}", "correct it and run again", BAD_INPUT)
    if code in PASSING or passing(error):
        return ForgeError(
            f"{what(error)}, several times", "run the same command later: what is up is not sent again", ENVIRONMENT
        )
    return ForgeError(
        f"{repo} could not be sent: {f'the Hub answers {code}' if code else _said(error)}",
        "run the same command again: what is up is not sent again; --debug shows more",
        ENVIRONMENT,
    )


def _said(error: BaseException) -> str:
    """The error's own words without addresses, which may carry signatures."""
    words = [word for word in one_line(f"{type(error).__name__}: {error}").split() if "://" not in word]
    return " ".join(words)[:160]
