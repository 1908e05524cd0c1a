"""Talk to the finished GGUF in the terminal, through llama.cpp, with the system prompt it was trained with.

  make chat            (make chat BASE=1: beside the base)
  python scripts/chat_model.py --base
  echo "Who are you?" | python scripts/chat_model.py

Each line is a question; what was said before is remembered, up to the model's context. Ctrl-C stops an answer, Ctrl-D
(or Ctrl-C at the prompt) ends the talk. With --base the model as it was before training answers the same question, in
16 or 32 bits; it remembers its own answers. The GGUF runs on the GPU where llama.cpp was built for one.
"""

import argparse
import signal
import sys
from collections.abc import Iterator

from forge import command, config
from forge.serving import finished, talk


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--base", action="store_true", help="let the base model answer, too")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens an answer may have (default: %(default)s)")
    arguments = parser.parse_args()
    command.guard(lambda: chat(arguments), debug=arguments.debug)


def chat(arguments: argparse.Namespace) -> None:
    configuration = config.load(arguments.config)
    model = finished.find(configuration)
    talkers = {"tuned": talk.by_gguf(model, arguments.max_tokens)}
    if arguments.base:
        tell("loading the base model")
        talkers["base"] = talk.by_base(configuration.layout, model, arguments.max_tokens)
    system = model.project["system_prompt"]
    start = [{"role": "system", "content": system}] if system else []
    said = {name: list(start) for name in talkers}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # each is meant: it stops an answer, or ends the talk
    try:
        tell(f"{model.path.name}: Ctrl-C stops an answer, Ctrl-D ends the talk")
        for question in questions():
            for name, answer in talkers.items():
                if len(talkers) > 1:
                    write(f"{name}: ")
                reply(answer, said[name], question)
    except (EOFError, KeyboardInterrupt):
        write("\n")


def questions() -> Iterator[str]:
    """Lines of a person or a pipe, without empty ones; a prompt for a person only."""
    person = sys.stdin.isatty() and sys.stdout.isatty()
    if person:
        import readline  # noqa: F401 - lets input() edit a line and go back to earlier ones
    while True:
        line = input("> ") if person else sys.stdin.readline()
        if not person and not line:
            return
        if line.strip():
            yield line.strip()


def reply(answer: talk.Answer, turns: talk.Turns, question: str) -> None:
    """Ask, show the answer, remember both. What does not fit the context is forgotten, the oldest first."""
    asked, forgotten = [*turns, {"role": "user", "content": question}], False
    while True:
        try:
            asked.append({"role": "assistant", "content": answer(asked, write)})
            break
        except KeyboardInterrupt:
            write(" (stopped)\n")
            return  # half an answer is no example for the next one
        except talk.TooLong:
            if not talk.shorten(asked):
                write("(this question is longer than the model's context)\n")
                return
            forgotten = True
    write("\n")
    turns[:] = asked
    if forgotten:
        tell("(the context was full: the oldest question is forgotten)")


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def tell(text: str) -> None:
    """Beside the talk, so that a pipe holds answers alone."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
