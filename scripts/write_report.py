"""Write one page that shows what was made and how good it is: report/<name>/index.html.

Reads the config and the records of all phases; runs none of them and measures nothing. What was not done, failed, was
overridden or is out of date is told as that. The page needs no network and holds no program: it can be sent as it is.
It quotes answers of the models and questions of the held-out sets; credentials in them are replaced.
"""

from pathlib import Path

from forge import command, config, files


def main() -> None:
    arguments = command.parser(__doc__).parse_args()
    command.guard(lambda: write(config.load(arguments.config)), debug=arguments.debug)


def write(configuration: config.Config) -> None:
    from forge.reporting import facts, page

    told = facts.gather(configuration)
    path = Path("report") / configuration.layout.name / "index.html"
    files.write_text(path, page.render(told))
    print(f"{told['headline']['word']}: {told['headline']['told']}")
    print(f"wrote {path} ({files.size_text(path.stat().st_size)}): open it in a browser")


if __name__ == "__main__":
    main()
