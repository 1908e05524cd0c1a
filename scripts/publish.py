"""Copy this config's Modelfile and manifest to the top of the checkout.

Reads models/gguf/<name>.Modelfile and <name>.manifest.json; writes Modelfile and gguf_model_manifest.json when
they differ. With two configs in turn, the top holds what belongs to the config named last.
"""

from pathlib import Path

from forge import config, graph, manifest, phase
from forge.files import write_if_changed


def main() -> None:
    arguments = phase.parser(__doc__).parse_args()
    phase.guard(lambda: publish(config.load(arguments.config)), debug=arguments.debug)


def publish(configuration: config.Config) -> None:
    record = graph.BY_NAME["modelfile"].record(configuration.layout)
    if manifest.read(record) is None:
        return
    modelfile = record.parent / f"{configuration.layout.name}.Modelfile"
    for source, target in ((modelfile, "Modelfile"), (record, "gguf_model_manifest.json")):
        if write_if_changed(Path(target), source.read_text(encoding="utf-8")):
            print(f"wrote {target}")


if __name__ == "__main__":
    main()
