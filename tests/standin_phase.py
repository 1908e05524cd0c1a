"""A stand-in phase: the real frame (forge.phase) around work that takes no time.

Copied over the real scripts in tests of make: what it writes depends on its settings and inputs alone, so that
make's decisions, the records and the swaps are the real ones. The dataset's output is the documents' words, so
that a changed document may give the same rows.
"""

import os
import sys
import time
from pathlib import Path

from forge import files, graph, manifest, phase, sources

NAME = next(row.name for row in graph.PHASES if row.script == Path(sys.argv[0]).name)


def work(run: phase.Run) -> dict | None:
    if os.environ.get("STANDIN_SLEEP") == NAME:
        print("sleeping", flush=True)
        time.sleep(60)
    content = files.sha256_json([run.settings, run.input_digests()])
    if NAME == "dataset":
        listed = [path for source in run.settings["data"]["sources"] for path in sources.files_of(source)]
        content = " ".join(word for path in listed for word in path.read_text(encoding="utf-8").split())
        content += files.sha256_json(run.settings)
    if run.phase.gate:
        passed = os.environ.get("STANDIN_FAIL") != NAME
        check = {"name": "stand-in", "value": int(passed), "limit": "1", "n": 1, "passed": passed}
        return {"checks": [check], "fidelity": {}, "remedy": "unset STANDIN_FAIL"}
    if NAME == "gguf":
        made = {}
        for quantization in run.settings["gguf"]["quantizations"]:
            path = run.staging / run.layout.gguf(quantization).name
            path.write_text(content + quantization, encoding="utf-8")
            made[quantization] = {"name": path.name, "size": 1, "sha256": ""}
        return {"files": made, "deployed": next(iter(made.values()))["name"]}
    if NAME == "modelfile":
        (run.staging / f"{run.layout.name}.Modelfile").write_text(f"FROM {content}\n", encoding="utf-8")
        record = {"subject": manifest.describe(run.staging), "config": run.config.digest(NAME)}
        manifest.write(run.staging / run.record.name, {**record, "inputs": run.input_digests()})
        return None
    (run.staging / "data.bin").write_text(content, encoding="utf-8")
    named = {"base_model_name": "org/base", "revision": None} if NAME == "model" else {}
    return {"steps": 1, "validation_loss": 1.0, "rows": {"train": 1}, **named}


if __name__ == "__main__":
    phase.start(__doc__, NAME, work)
