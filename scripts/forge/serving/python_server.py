"""llama-cpp-python's OpenAI-compatible server: one request after the other, nothing to build."""

import json
import os
import socket

from forge.errors import INTEGRITY, ForgeError
from forge.llamacpp import llama
from forge.serving.finished import Finished

LOCAL = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"  # origins of pages that may ask
HOSTS = ["127.0.0.1", "localhost"]  # names of this machine that a request may carry when only it is served
GOODBYE = 5  # seconds that running answers have to end in


def application(model: Finished, host: str, context: int, key: str | None):
    """The server's ASGI application, with the model loaded. Raises ForgeError (6) when it does not load.

    `interrupt_requests` is off: by default a new request cuts the answer that is being streamed.
    """
    os.environ.pop("CONFIG_FILE", None)  # the library would take everything from there
    llama.library()
    from fastapi.middleware.cors import CORSMiddleware
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from llama_cpp.server.app import create_app

    server_settings, model_settings = settings()
    server = server_settings(api_key=key, interrupt_requests=False)
    loaded = model_settings(
        model=str(model.path),
        model_alias=model.project["name"],  # else clients see the path
        n_ctx=context,
        n_gpu_layers=-1,
        n_threads=os.cpu_count(),
        n_threads_batch=os.cpu_count(),
        logits_all=False,  # else 4 bytes for each token of the context and each of the vocabulary
        chat_format=llama.OWN_TEMPLATE,
        verbose=False,
    )
    try:
        made = create_app(server_settings=server, model_settings=[loaded])
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ForgeError(
            f"llama.cpp cannot load {model.path}: {error}",
            "set serve.context lower, or run make redo PHASE=gguf",
            INTEGRITY,
        ) from None
    # The library lets every web page in the browser read answers; here only pages of this machine may.
    made.user_middleware = [item for item in made.user_middleware if item.cls is not CORSMiddleware]
    made.add_middleware(CORSMiddleware, allow_origin_regex=LOCAL, allow_methods=["*"], allow_headers=["*"])
    tell_errors_in_streams()
    if host in HOSTS:  # nor pages whose name was made to lead here
        made.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    return made


def tell_errors_in_streams() -> None:
    """A streamed answer that fails (longer than the context, say) ends with OpenAI's form of an error.

    The library has sent the headers by then, and ends the stream as if the answer were empty.
    """
    from llama_cpp.server import app, errors

    publish = app.get_event_publisher

    async def told(inner_send_chan, body, **more) -> None:
        async with inner_send_chan.clone() as channel:
            try:
                await publish(inner_send_chan=inner_send_chan, body=body, **more)
            except Exception as error:  # whatever llama.cpp raises
                handler = errors.RouteErrorHandler
                _, said = handler.error_message_wrapper(handler, error=error, body=body)
                await channel.send({"data": json.dumps({"error": said})})

    app.get_event_publisher = told


def settings() -> tuple[type, type]:
    """The library's classes of settings, deaf to the environment: a variable PORT, CACHE or LORA_PATH would count."""
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    class Server(ServerSettings):
        @classmethod
        def settings_customise_sources(cls, settings_cls, init_settings, **_):
            return (init_settings,)

    class Model(ModelSettings):
        @classmethod
        def settings_customise_sources(cls, settings_cls, init_settings, **_):
            return (init_settings,)

    return Server, Model


def run(app, listening: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    import uvicorn

    uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=GOODBYE)).run(sockets=[listening])
