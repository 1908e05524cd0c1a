"""JSON over HTTP to servers on this machine."""

import json
import urllib.error
import urllib.request

from forge.errors import ENVIRONMENT, ForgeError


class Refused(Exception):
    """The server answered with an error: `status` and what it says."""

    def __init__(self, status: int, said: str):
        super().__init__(said)
        self.status = status


class Unreachable(Exception):
    """Nothing answers there."""


def ask(url: str, body: dict | None = None, key: str | None = None, wait: float = 600) -> dict:
    """The JSON that a server answers: to a GET, or to a POST of `body`. `wait` in seconds.

    Raises Unreachable, Refused, or ForgeError (7) for what is no JSON.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(body).encode("utf-8") if body is not None else None, headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy's variables are for other machines
    try:
        with direct.open(request, timeout=wait) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        raise Refused(error.code, _said(error.read())) from None
    except ValueError:
        raise ForgeError(
            f"{url} answers with something else than JSON", "see what listens there", ENVIRONMENT
        ) from None
    except OSError as error:
        raise Unreachable(str(getattr(error, "reason", error))) from None


def _said(raw: bytes) -> str:
    """What an error says, in OpenAI's form, Ollama's or FastAPI's."""
    text = raw.decode("utf-8", "replace")
    try:
        told = json.loads(text)
        told = told.get("error") or told.get("detail") or told
        return str(told.get("message", told) if isinstance(told, dict) else told)[:300]
    except (ValueError, AttributeError):
        return text[:300]
