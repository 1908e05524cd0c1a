"""Put the finished model into Ollama, check there that it is what was trained, and only then give it its name.

Runs `ollama create` with the Modelfile under a name of its own, compares the prompts that Ollama writes with those of
the training, asks the identity question, then copies the model to ollama.model_name, and to the project's name where
that is another. A model of that name that was there before stays until then. OLLAMA_HOST names another server than
the usual. With --remove it takes these names out again (make undeploy); --check only looks whether Ollama is there,
which make deploy does before it makes a model.
"""

import argparse
from pathlib import Path

from forge import command, config, files, questions
from forge.errors import GATE_NOT_PASSED, ForgeError
from forge.serving import finished, ollama_app

UNCHECKED = "unchecked"  # tag of the model until it is known to be right


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--remove", action="store_true", help="take the model out of Ollama again")
    parser.add_argument("--check", action="store_true", help="only look whether an Ollama is there that can take it")
    arguments = parser.parse_args()
    command.guard(lambda: run(arguments), debug=arguments.debug)


def run(arguments: argparse.Namespace) -> None:
    configuration = config.load(arguments.config)
    if arguments.check:
        ollama_app.require(ollama_app.server(ollama_app.command()))
    elif arguments.remove:
        remove(configuration)
    else:
        deploy(configuration)


def deploy(configuration: config.Config) -> None:
    model = finished.find(configuration)
    program = ollama_app.command()
    url = ollama_app.server(program)
    print(f"Ollama {ollama_app.require(url)} at {url}", flush=True)
    name, *aliases = names_of(configuration)
    trial = f"{name}:{UNCHECKED}"
    files.write_if_changed(Path("Modelfile"), modelfile_of(configuration).read_text(encoding="utf-8"))
    print(f"ollama create {name} -f Modelfile: {model.path.name}, {model.path.stat().st_size / 1e6:.1f} MB", flush=True)
    ollama_app.run(program, "create", trial, "-f", "Modelfile")
    try:
        equal = ollama_app.check_prompts(url, trial, model)
        print(f"ok   {equal} conversations are written as in training", flush=True)
        ask_who_it_is(url, trial, model)
        for final in (name, *aliases):
            ollama_app.run(program, "cp", trial, final)
    finally:
        ollama_app.run(program, "rm", trial)
    print(f"next: ollama run {name}" + "".join(f"    also known as {alias}" for alias in aliases))


def remove(configuration: config.Config) -> None:
    program = ollama_app.command()
    url = ollama_app.server(program)
    ollama_app.require(url)
    there = ollama_app.names(url)
    for name in names_of(configuration):
        if name in there:
            ollama_app.run(program, "rm", name)
        print(f"{name} {'is taken out of' if name in there else 'is not in'} Ollama")


def names_of(configuration: config.Config) -> list[str]:
    """ollama.model_name, then the project's name where that is another."""
    project = configuration.layout.name.lower()
    return list(dict.fromkeys([configuration.values.ollama.model_name or project, project]))


def modelfile_of(configuration: config.Config) -> Path:
    return configuration.layout.gguf_folder / f"{configuration.layout.name}.Modelfile"


def ask_who_it_is(url: str, name: str, model: finished.Finished) -> None:
    """The identity question alone: the Modelfile has the system prompt. Raises ForgeError (3) for a wrong answer."""
    identity = model.project["identity"]
    turns = [{"role": "user", "content": identity["question"]}]
    options = {"temperature": 0, "seed": 0, "num_predict": 256}
    answer = ollama_app.call(url, "/api/chat", {"model": name, "messages": turns, "stream": False, "options": options})[
        "message"
    ]["content"]
    print(f"  {identity['question']} -> {' '.join(answer.split())[:100]}", flush=True)
    if questions.right(answer, [identity["expected"]] if identity["expected"] else None) is False:
        raise ForgeError(
            f"{identity['question']!r} is not answered with {identity['expected']!r} in Ollama",
            "see that project.identity is trained (make verify-gguf asks the same), or update Ollama",
            GATE_NOT_PASSED,
        )


if __name__ == "__main__":
    main()
