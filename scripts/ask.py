"""Ask the finished GGUF one question, through llama.cpp, with the config's system prompt.

  make ask PROMPT="Who are you?"
  python scripts/ask.py --prompt "Who are you?"

Reads project.system_prompt and ollama.* of the config and the deployed GGUF. The question may also come from
the environment variable PROMPT: make hands it over that way, so that no shell reads it.
"""

import os
import sys

from forge import chat, config, graph, llama, manifest, phase
from forge.errors import ForgeError


def main() -> None:
    parser = phase.parser(__doc__)
    parser.add_argument("--prompt", help="the question; default: the environment variable PROMPT")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens the answer may have")
    arguments = parser.parse_args()
    phase.guard(lambda: ask(arguments), debug=arguments.debug)


def ask(arguments) -> None:
    configuration = config.load(arguments.config)
    question = arguments.prompt or os.environ.get("PROMPT", "")
    if not question.strip():
        raise ForgeError("no question", 'write make ask PROMPT="Who are you?"')
    content = manifest.read(graph.BY_NAME["gguf"].record(configuration.layout))
    if content is None:
        raise ForgeError("there is no GGUF yet", f"run make all CONFIG={configuration.path}")
    path = configuration.layout.gguf_folder / content["facts"]["deployed"]
    values = configuration.values
    model = llama.load(path, context=values.ollama.num_ctx or 2048)
    stream = model.create_chat_completion(
        chat.conversation(values.project.system_prompt, question),
        max_tokens=arguments.max_tokens,
        temperature=values.ollama.temperature,
        top_p=values.ollama.top_p,
        repeat_penalty=values.ollama.repeat_penalty,
        stream=True,
    )
    for part in stream:
        sys.stdout.write(part["choices"][0]["delta"].get("content") or "")
        sys.stdout.flush()
    print()


if __name__ == "__main__":
    main()
