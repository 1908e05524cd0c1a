"""Serve the finished GGUF to programs, by an OpenAI-compatible server on this machine.

Reads serve.* of the config, the model's manifest, and the key MODEL_FORGE_API_KEY from the environment or .env (without
one, every program on this machine may ask). The chat template is the one inside the file. Clients send their own system
prompt: none is added here. Ctrl-C ends it.
"""

import os

from forge import command, config
from forge.errors import ForgeError
from forge.llamacpp import compiling
from forge.serving import access, finished, native_server, python_server

CIRIS_NEEDS = 8192  # tokens of context


def main() -> None:
    arguments = command.parser(__doc__).parse_args()
    command.guard(lambda: serve(config.load(arguments.config)), debug=arguments.debug)


def serve(configuration: config.Config) -> None:
    wanted = configuration.values.serve.model_dump()
    key = access.key()
    access.require_key(wanted["host"], key)
    listening = access.listen(wanted["host"], wanted["port"])  # first: a port in use is told at once
    model = finished.find(configuration)
    context = context_of(model, wanted["context"])
    native = wanted["engine"] == "llama-server"
    built = compiling.ready(native_server.SERVER, say) if native else None
    url = access.url(wanted["host"], wanted["port"])
    say(f"{model.path.name}, context {context} tokens, by {wanted['engine']} on {wanted['host']}")
    say(f"the key is that of {access.KEY}" if key else f"no key is wanted: {access.KEY} is not set")
    if context < CIRIS_NEEDS:
        say(f"note: CIRISAgent needs a context of {CIRIS_NEEDS} tokens")
    say(f"OpenAI's clients: base_url={url} model={model.project['name']}    Ctrl-C ends it")
    if native:
        listening.close()
        os.execve(built, native_server.command(built, model, context, wanted), native_server.environment(key))
    try:
        python_server.run(python_server.application(model, wanted["host"], context, key), listening)
    except KeyboardInterrupt:
        say("stopped")


def context_of(model: finished.Finished, wanted: int | None) -> int:
    made_for = model.content["context_length"]
    if wanted is not None and made_for is not None and wanted > made_for:
        raise ForgeError(
            f"serve.context {wanted} is more than the {made_for} tokens that the model was made for",
            f"set it to {made_for} or less, or to null",
        )
    return wanted or model.parameters["num_ctx"]


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
