"""Who may ask the server: where it listens, and the key that it wants."""

import errno
import ipaddress
import os
import re
import socket

from forge.errors import BAD_INPUT, ENVIRONMENT, ForgeError

KEY = "MODEL_FORGE_API_KEY"


def key() -> str | None:
    """The key from the environment or .env, None where there is none. It goes into no log and no command line.

    Raises ForgeError (2) for one that cannot stand in a request's header, or that llama-server takes for two.
    """
    from dotenv import dotenv_values

    found = {**dotenv_values(".env"), **os.environ}.get(KEY) or None
    if found is not None and not re.fullmatch(r"[!-+.-~-]+", found):
        raise ForgeError(f"{KEY} holds a space, a comma or a character that is not ASCII", "choose another key")
    return found


def is_loopback(host: str) -> bool:
    """Whether nothing outside this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_key(host: str, known: str | None) -> None:
    if known is None and not is_loopback(host):
        raise ForgeError(
            f"serve.host {host} can be reached from other machines, and there is no key",
            f"put {KEY}=... into .env (python -c 'import secrets; print(secrets.token_urlsafe())' makes one), "
            "or set serve.host to 127.0.0.1",
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address.

    Raises ForgeError: 7 for a port in use, 2 for an address that is not this machine's.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
    except OSError as error:
        raise _no_address(host, error) from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        return bound
    except OSError as error:
        bound.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ForgeError(
                f"port {port} of {host} is {'in use' if error.errno == errno.EADDRINUSE else 'not allowed for you'}",
                "stop what listens there, or set serve.port to another",
                ENVIRONMENT,
            ) from None
        raise _no_address(host, error) from None


def _no_address(host: str, error: OSError) -> ForgeError:
    return ForgeError(f"cannot listen on serve.host {host}: {error.strerror}", "set it to 127.0.0.1", BAD_INPUT)


def url(host: str, port: int) -> str:
    """Where clients on this machine find the server, as OpenAI's clients want it."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}/v1"
