"""Write config/training_config.schema.json, which editors use to complete and check the config."""

from pathlib import Path

from forge import files, phase, schema


def main() -> None:
    arguments = phase.parser(__doc__).parse_args()
    target = Path("config/training_config.schema.json")
    phase.guard(lambda: files.write_json(target, schema.editor_schema()), debug=arguments.debug)


if __name__ == "__main__":
    main()
