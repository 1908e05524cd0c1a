"""Write config/training_config.schema.json, which editors use to complete and check the config, and the form of the
feedback file, docs/feedback.schema.json (in a checkout that has docs/)."""

from pathlib import Path

from forge import command, files, schema
from forge.evaluating import feedback


def main() -> None:
    arguments = command.parser(__doc__).parse_args()
    target = Path("config/training_config.schema.json")
    command.guard(lambda: write(target), debug=arguments.debug)


def write(target: Path) -> None:
    files.write_json(target, schema.editor_schema())
    if Path("docs").is_dir():
        files.write_json(Path("docs/feedback.schema.json"), feedback.schema())


if __name__ == "__main__":
    main()
