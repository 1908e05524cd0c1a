"""Ollama on this machine: its command, its server, and what it makes of a conversation."""

import contextlib
import ipaddress
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

from forge import vocabulary
from forge.conversations import CONVERSATIONS
from forge.environment.libraries import SAFE_OLLAMA
from forge.environment.machine import in_wsl
from forge.errors import ENVIRONMENT, GATE_NOT_PASSED, ForgeError, one_line
from forge.llamacpp import llama
from forge.serving import requests
from forge.serving.finished import Finished

GET = "get Ollama from https://ollama.com/download, or talk without it: make chat"


def command() -> str:
    """Ollama's program; the one of Windows where this is WSL and has none of its own. Raises ForgeError (7)."""
    found = shutil.which("ollama") or (shutil.which("ollama.exe") if in_wsl() else None)
    if found is None:
        raise ForgeError("there is no ollama on PATH", GET, ENVIRONMENT)
    return found


def address() -> str:
    """Where Ollama listens, by OLLAMA_HOST as Ollama itself reads it: a host, with a scheme or a port or neither."""
    text = os.environ.get("OLLAMA_HOST", "").strip(" \"'/")
    scheme, separator, rest = text.rpartition("://")
    try:
        parts = urllib.parse.urlsplit(f"//{rest}")
        host, port = parts.hostname or "127.0.0.1", parts.port
    except ValueError:
        raise ForgeError(
            f"OLLAMA_HOST={text} names no host and port", "write OLLAMA_HOST=127.0.0.1:11434, or unset it"
        ) from None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # what a server listens on is no address to ask
    port = port or ({"http": 80, "https": 443}.get(scheme, 11434) if separator else 11434)
    return f"{scheme or 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def server(program: str) -> str:
    """`address`; of Windows' Ollama, used from WSL and not named by OLLAMA_HOST, Windows' own address where nothing
    answers on loopback: mirrored networks share it, others have Windows as their gateway."""
    url = address()
    windows = gateway() if program.endswith(".exe") and not os.environ.get("OLLAMA_HOST") else None
    for place in [url, *([f"http://{windows}:11434"] if windows else [])]:
        with contextlib.suppress(requests.Unreachable, requests.Refused, ForgeError):
            requests.ask(f"{place}/api/version", wait=5)
            return place
    return url


def gateway(routes: Path = Path("/proc/net/route")) -> str | None:
    """The IPv4 address that packets for elsewhere go to, by the kernel's table; None without one."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        rows = [line.split() for line in routes.read_text(encoding="ascii").splitlines()[1:]]
        found = [(int(row[6]), int(row[2], 16)) for row in rows if int(row[1], 16) == 0 != int(row[2], 16)]
        if found:
            return str(ipaddress.IPv4Address(min(found)[1].to_bytes(4, "little")))  # of the lowest metric
    return None


def require(url: str) -> str:
    """The version of the server. Raises ForgeError (7) when none runs, or one that is too old."""
    try:
        version = str(requests.ask(f"{url}/api/version", wait=10).get("version"))
    except (requests.Unreachable, requests.Refused) as error:
        windows = "; the one of Windows: see docs/serve.md" if in_wsl() else ""
        raise ForgeError(
            f"no Ollama answers at {url}: {error}",
            f"start it (ollama serve), or name it by OLLAMA_HOST{windows}",
            ENVIRONMENT,
        ) from None
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None or tuple(map(int, match.groups())) < SAFE_OLLAMA:
        wanted = ".".join(map(str, SAFE_OLLAMA))
        raise ForgeError(f"Ollama {version} is too old: {wanted} or newer is needed", f"update it: {GET}", ENVIRONMENT)
    return version


def run(program: str, *arguments: str) -> None:
    """`ollama create` and its like. Progress is shown to a person; a log gets the last line when it fails."""
    shown = None if sys.stderr.isatty() else subprocess.PIPE
    environment = dict(os.environ)
    if program.endswith(".exe"):  # Windows gives its programs no variable of WSL that is not named there
        environment["WSLENV"] = f"{environment.get('WSLENV', '')}:OLLAMA_HOST".strip(":")
    try:
        done = subprocess.run([program, *arguments], stdout=shown, stderr=shown, env=environment, check=False)
    except OSError as error:
        raise ForgeError(f"{program} cannot be run: {error.strerror}", GET, ENVIRONMENT) from None
    if done.returncode != 0:
        said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", (done.stderr or b"").decode("utf-8", "replace")).strip()
        last = one_line(said.splitlines()[-1]) if said else f"it ended with {done.returncode}"
        raise ForgeError(
            f"ollama {arguments[0]} failed: {last[:300]}", "see what the Ollama server printed", ENVIRONMENT
        )


def call(url: str, path: str, body: dict | None = None) -> dict:
    """An answer of Ollama's API. Raises ForgeError (7) with what it says instead."""
    try:
        return requests.ask(f"{url}{path}", body)
    except requests.Refused as error:
        raise ForgeError(f"Ollama refused {path}: {error}", "see what the Ollama server printed", ENVIRONMENT) from None
    except requests.Unreachable as error:
        raise ForgeError(
            f"Ollama went away: {error}", "start it again, then run the same command", ENVIRONMENT
        ) from None


def names(url: str) -> set[str]:
    """Models that are there; without ":latest", which a name without a tag means."""
    return {item["name"].removesuffix(":latest") for item in call(url, "/api/tags").get("models") or []}


def check_prompts(url: str, name: str, model: Finished) -> int:
    """Ollama's rendering of each conversation against the template inside the GGUF, which is that of the training.

    Ollama puts the Modelfile's system prompt in front of a conversation that has none. Returns how many were equal;
    raises ForgeError (3) when one is not.
    """
    system = model.project["system_prompt"]
    own = {"the project's own": [{"role": "user", "content": model.project["identity"]["question"]}]}
    loaded = llama.load(model.path, context=64, vocab_only=True)
    write, equal, differing = llama.prompt_writer(loaded), 0, {}
    for title, turns in (CONVERSATIONS | own).items():
        asked = [{"role": "system", "content": system}, *turns] if system and turns[0]["role"] != "system" else turns
        try:
            wanted = vocabulary.served(loaded, write(asked))
        except Exception:  # of jinja2's many: the template refuses it, as in training
            continue
        found = vocabulary.served(loaded, rendered(url, name, turns))
        if found == wanted:
            equal += 1
        else:
            differing[title] = first_difference(found, wanted)
    loaded.close()
    if differing:
        title, (seen, meant) = next(iter(differing.items()))
        raise ForgeError(
            f"Ollama writes {len(differing)} of {equal + len(differing)} conversations otherwise than in training: "
            f"{', '.join(list(differing)[:3])}; in {title!r} {seen!r} instead of {meant!r}",
            "update Ollama, set ollama.template to none, or take unusual characters out of project.system_prompt",
            GATE_NOT_PASSED,
        )
    return equal


def rendered(url: str, name: str, turns: list[dict]) -> str:
    """The prompt that Ollama's server makes of a conversation; the model is not asked."""
    body = {"model": name, "messages": turns, "stream": False, "truncate": False, "_debug_render_only": True}
    told = call(url, "/api/chat", body).get("_debug_info")
    if not isinstance(told, dict) or "rendered_template" not in told:
        raise ForgeError("this Ollama does not show the prompts that it writes", f"update it: {GET}", ENVIRONMENT)
    return told["rendered_template"]


def first_difference(found: str, wanted: str) -> tuple[str, str]:
    """What stands in both from shortly before the place where they part."""
    place = next(
        (at for at, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
    )
    return tuple(text[max(0, place - 10) : place + 20] for text in (found, wanted))
