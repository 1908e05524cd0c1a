"""Ask the finished GGUF one question, through llama.cpp, with the system prompt it was trained with.

  make ask PROMPT="Who are you?"
  python scripts/ask.py --prompt "Who are you?"

Reads the deployed GGUF and its manifest, whose SHA-256 must agree. The question may also come from the environment
variable PROMPT: make hands it over that way, so that no shell reads it.
"""

import os
import sys

from forge import chat, command, config
from forge.errors import ForgeError
from forge.serving import finished, talk


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--prompt", help="the question; default: the environment variable PROMPT")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens the answer may have")
    arguments = parser.parse_args()
    command.guard(lambda: ask(arguments), debug=arguments.debug)


def ask(arguments) -> None:
    configuration = config.load(arguments.config)
    question = arguments.prompt or os.environ.get("PROMPT", "")
    if not question.strip():
        raise ForgeError("no question", 'write make ask PROMPT="Who are you?"')
    model = finished.find(configuration)
    answer = talk.by_gguf(model, arguments.max_tokens)
    try:
        answer(chat.conversation(model.project["system_prompt"], question), write)
    except talk.TooLong:
        raise ForgeError("the question is longer than the model's context", "ask a shorter one") from None
    print()


def write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
