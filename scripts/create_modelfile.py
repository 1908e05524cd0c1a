"""Write the Ollama Modelfile and the model's manifest, gathering what all phases found out.

Reads ollama.* and project.* of the config, Modelfile.template, the records and verdicts of all phases and the
deployed GGUF's header. Writes models/gguf/<name>.Modelfile and <name>.manifest.json; make copies them to
Modelfile and gguf_model_manifest.json at the top. They hold no time and no path of this machine: the same
model gives the same bytes. A TEMPLATE is written where verify-gguf has shown one equal, else a comment why not.
"""

import json
import string
from pathlib import Path

from forge import VERSION, files, graph, manifest, phase, sources
from forge.errors import ForgeError
from forge.llamacpp import ggufmeta, llama

LARGEST_DEFAULT_CONTEXT = 8192  # tokens; more costs memory that 8 GB cards do not have


def work(run: phase.Run) -> None:
    deployed = run.layout.gguf_folder / run.facts("gguf")["deployed"]
    header = llama.header(deployed)
    parameters = sampling(run, header)
    text = fill(run, deployed, parameters)
    modelfile = run.staging / f"{run.layout.name}.Modelfile"
    files.write_text(modelfile, text)
    manifest.write(run.staging / run.record.name, gather(run, header, parameters))
    run.say(f"context {parameters['num_ctx']} tokens, stop at {run.facts('model')['end_token']}")


def sampling(run: phase.Run, header: dict) -> dict:
    """Ollama's parameters; the context is never shorter than what was trained, nor longer than the model's."""
    wanted = run.settings["ollama"]
    trained = run.inputs["train"]["settings"]["training"]["max_length"]
    made_for = int(header.get(f"{header['general.architecture']}.context_length", LARGEST_DEFAULT_CONTEXT))
    context = wanted["num_ctx"] or usual_context(header, made_for, trained)
    if context > made_for or context < trained:
        raise ForgeError(
            f"ollama.num_ctx {context} is not between the training length {trained} and the model's {made_for}",
            "set ollama.num_ctx to null or to a value between the two",
        )
    return {"num_ctx": context, **{key: wanted[key] for key in ("temperature", "top_p", "repeat_penalty")}}


def usual_context(header: dict, made_for: int, trained: int) -> int:
    """The model's own context, within what memory allows.

    Phi-3.5 turns positions by other angles in texts longer than 4096 tokens; llama.cpp goes by the context instead, so
    with a longer one it would take them for every text, which was trained with the first ones.
    """
    short = header.get("phi3.rope.scaling.original_context_length")
    if short is not None and trained <= short:
        made_for = min(made_for, int(short))
    return min(made_for, LARGEST_DEFAULT_CONTEXT)


def fill(run: phase.Run, deployed: Path, parameters: dict) -> str:
    project = run.settings["project"]
    template = string.Template(Path(sources.MODELFILE_TEMPLATE).read_text(encoding="utf-8"))
    slots = {
        "name": project["name"],
        "version": one_line(project["version"]),
        "base": one_line(ggufmeta.public_name(run.facts("model")["base_model_name"])),
        "model_name": model_name(run),
        "from_path": f"./{deployed.as_posix()}",
        "template": template_lines(run),
        "stops": stop_line(run.facts("model")["end_token"]),
        "system": system_lines(project["system_prompt"]),
        **parameters,
    }
    try:
        return template.substitute(slots).rstrip("\n") + "\n"
    except (KeyError, ValueError) as error:
        raise ForgeError(
            f"{sources.MODELFILE_TEMPLATE}: {error} is no slot", f"known slots: {', '.join(sorted(slots))}"
        ) from None


def one_line(text: str) -> str:
    return " ".join(text.split())


def model_name(run: phase.Run) -> str:
    return run.settings["ollama"]["model_name"] or run.settings["project"]["name"].lower()


def stop_line(token: str) -> str:
    if '"' in token or not token.isprintable():
        raise ForgeError(f"the end token {token!r} cannot be written into a Modelfile", "choose another base")
    return f'PARAMETER stop "{token}"'


def template(run: phase.Run) -> dict:
    """What is told of the TEMPLATE: its `name` and `sha256`, or `name` None and the `reason` why there is none."""
    found = verdict(run, "verify-gguf").get("template")
    if found is None:
        raise ForgeError(
            "the verdict of verify-gguf is of an older version, without a TEMPLATE", "run make redo PHASE=verify-gguf"
        )
    if run.settings["ollama"]["template"] == "none":
        return {"name": None, "reason": "ollama.template is none"}
    return {key: found[key] for key in ("name", "sha256", "reason") if key in found}


def template_lines(run: phase.Run) -> str:
    """`TEMPLATE` in triple quotes, or comments. A text that Ollama's reader would not take as it is is refused."""
    told = template(run)
    if told["name"] is None:
        return (
            f"# No TEMPLATE: {one_line(told['reason'])}.\n"
            "# Ollama uses the chat template inside the GGUF, which was checked to be the one of the training."
        )
    text = (run.layout.gate("verify-gguf") / "template").read_text(encoding="utf-8")
    if '"""' in text or text.endswith('"') or not text.replace("\n", "").isprintable() or not text.isascii():
        raise ForgeError("a Modelfile cannot hold the TEMPLATE of verify-gguf", "set ollama.template to none")
    return f'# {told["name"]}: shown to write prompts as the chat template of the training does\nTEMPLATE """{text}"""'


def system_lines(prompt: str) -> str:
    """`SYSTEM` in triple quotes. A prompt that would end them early is refused: nothing may be injected."""
    if not prompt:
        return ""
    if '"""' in prompt or prompt.endswith('"'):
        raise ForgeError(
            'project.system_prompt holds """ or ends with a quotation mark, which a Modelfile cannot hold',
            "rephrase the system prompt",
        )
    return f'SYSTEM """{prompt}"""'


def gather(run: phase.Run, header: dict, parameters: dict) -> dict:
    """The model's manifest: files, lineage, verdicts, fidelity, and how it is to be run."""
    model, gguf = run.inputs["model"], run.facts("gguf")
    verdicts = {row.name: verdict(run, row.name) for row in graph.PHASES if row.gate}
    modelfile = f"{run.layout.name}.Modelfile"
    return {
        "name": run.layout.name,
        "version": run.settings["project"]["version"],
        "description": run.settings["project"]["description"],
        "license": run.settings["project"]["license"],
        "deployed": gguf["deployed"],
        "files": [{"quantization": name, **made} for name, made in gguf["files"].items()],
        "importance_matrix": gguf.get("importance_matrix"),
        "architecture": header["general.architecture"],
        "context_length": header.get(f"{header['general.architecture']}.context_length"),
        "chat_template_sha256": run.facts("model")["chat_template_sha256"],
        "ollama_template": template(run),
        "parameters": {**parameters, "stop": [run.facts("model")["end_token"]]},
        "base": {
            "name": ggufmeta.public_name(run.facts("model")["base_model_name"]),
            "revision": run.facts("model")["revision"],
            "sha256": manifest.digest(model),
        },
        "data": {"sha256": manifest.digest(run.inputs["dataset"]), "rows": run.facts("dataset")["rows"]},
        "adapter": {"sha256": manifest.digest(run.inputs["train"]), **trained(run.facts("train"))},
        "verdicts": {name: content["verdict"] for name, content in verdicts.items()},
        "overrides": {name: content["override"] for name, content in verdicts.items() if content.get("override")},
        "evaluation": [item for item in verdicts["evaluate"].get("signals", []) if item["role"] == "gate"],
        "fidelity": verdicts["verify-gguf"]["fidelity"],
        "results": results(verdicts),
        "model_forge": VERSION,
        # the record of this phase, as every phase has one
        "subject": manifest.describe(run.staging, [modelfile]),
        "phase": run.phase.name,
        "config": run.config.digest(run.phase.name),
        "settings": run.settings,
        "inputs": run.input_digests(),
    }


def trained(facts: dict) -> dict:
    """What training was, without what differs between a run that was interrupted and one that was not."""
    stages = []
    for stage in facts["stages"]:
        kept = ("name", "steps", "rows", "validation_loss", "kept_step", "preferred_rightly")
        canary = stage["canary"] and {**stage["canary"], "checks": stage["canary"]["checks"][-1:]}
        stages.append({**{key: stage[key] for key in kept if key in stage}, "canary": canary})
    return {**facts, "stages": stages}


def results(verdicts: dict) -> dict:
    """What the gates measured on held-out text: the base, the tuned model, each file. Losses in nats a token."""
    adapter, merged, shipped = (verdicts[name] for name in ("verify-adapter", "verify-merged", "verify-gguf"))
    for name, found in (("verify-adapter", adapter), ("verify-gguf", shipped)):
        if "answers" not in found:
            raise ForgeError(
                f"the verdict of {name} is of an older version, without a count of answers",
                f"run make redo PHASE={name}",
            )
    compared, fidelity = adapter["comparison"], shipped["fidelity"]
    return {
        "questions": {**adapter["answers"], **shipped["answers"]},
        "loss": {
            "rows": compared["n_rows"],
            "tokens": compared["n_tokens"],
            "base": compared["reference_loss"],
            "tuned": compared["other_loss"],
            **{name: found["other_loss"] for name, found in fidelity.items()},
        },
        "mean_kl": {
            "merged": merged["comparison"]["mean_kl"],
            **{name: found["mean_kl"] for name, found in fidelity.items()},
        },
    }


def verdict(run: phase.Run, gate: str) -> dict:
    return json.loads((run.layout.gate(gate) / "verdict.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    phase.start(__doc__, "modelfile", work)
