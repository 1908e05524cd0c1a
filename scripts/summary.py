"""The end of `make all`: what was made, how good it is, how long it took, what comes next."""

from pathlib import Path

from forge import config, files, graph, manifest, phase


def main() -> None:
    arguments = phase.parser(__doc__).parse_args()
    phase.guard(lambda: show(config.load(arguments.config)), debug=arguments.debug)


def show(configuration: config.Config) -> None:
    layout = configuration.layout
    records = {row.name: manifest.read(row.record(layout)) or {} for row in graph.PHASES}
    made = records["modelfile"]
    print(f"\n{layout.name}")
    for item in made["files"]:
        print(f"  {layout.gguf_folder / item['name']}  {item['size'] / 1e6:.1f} MB  {_fidelity(made, item)}")
    print(f"  trained on {made['data']['rows']['train']} rows; gates: {_gates(made)}")
    knowledge = _knowledge(layout)
    if knowledge:
        print(f"  {knowledge}")
    seconds = sum(record.get("seconds", 0) for record in records.values())
    peak = max(record.get("peak_mb", 0) for record in records.values())
    print(f"  {seconds / 60:.1f} minutes of work in all phases, {peak / 1000:.1f} GB of memory at most")
    given = "" if configuration.path == Path("config/training_config.yaml") else f" CONFIG={configuration.path}"
    print(
        f'next: make ask PROMPT="..."{given}    ollama create {_name(configuration)} -f Modelfile    make status{given}'
    )


def _fidelity(made: dict, item: dict) -> str:
    found = made["fidelity"][item["quantization"]]
    return f"KL {found['mean_kl']:.3f} from the merged model (n={found['n_tokens']} tokens)"


def _gates(made: dict) -> str:
    return ", ".join(f"{name} {verdict}" for name, verdict in made["verdicts"].items())


def _knowledge(layout: graph.Layout) -> str:
    """Held-out questions answered with the expected fact by the first GGUF."""
    items = files.read_jsonl(layout.gate("verify-gguf") / "items.jsonl")
    if not items:
        return ""
    first = [item for item in items if item["quantization"] == items[0]["quantization"]][1:]
    judged = [item["contains_facts"] for item in first if item["contains_facts"] is not None]
    return f"expected fact in {sum(judged)} of {len(judged)} answers to held-out questions" if judged else ""


def _name(configuration: config.Config) -> str:
    return configuration.values.ollama.model_name or configuration.layout.name.lower()


if __name__ == "__main__":
    main()
