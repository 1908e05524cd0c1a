"""Compare the evaluation with that of the last release in baselines/, or keep this one as the release.

Reads evaluation/<name>/evaluate/ and baselines/<name>.json. On the same pairs the new model's preference for good
answers must be shown to be no worse than the release's (non-inferiority, evaluation.margin); else it ends with 3. With
--keep the present evaluation, which must be a PASS, becomes baselines/<name>.json: put that file into version control.
make evaluate reads it, too, and does not pass a model that falls behind it.
"""

import json

from forge import command, config, files, sources
from forge.errors import GATE_NOT_PASSED, ForgeError
from forge.evaluating import release, signals


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--keep", action="store_true", help="make this evaluation the release that later ones must match"
    )
    arguments = parser.parse_args()
    command.guard(lambda: run(config.load(arguments.config), arguments.keep), debug=arguments.debug)


def run(configuration: config.Config, keep: bool) -> None:
    layout = configuration.layout
    folder, path = layout.gate("evaluate"), sources.baseline(layout.name)
    if not (folder / "verdict.json").is_file():
        raise ForgeError(f"{layout.name} was not evaluated yet", f"run make evaluate CONFIG={configuration.path}")
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    items = files.read_jsonl(folder / "items.jsonl")
    if keep:
        if verdict["verdict"] != signals.PASS:
            raise ForgeError(f"the verdict is {verdict['verdict']}", "keep an evaluation that passed", GATE_NOT_PASSED)
        files.write_json(path, release.kept(layout.name, verdict, items))
        print(f"wrote {path}: later evaluations of {layout.name} are compared with it")
        return
    if not path.is_file():
        raise ForgeError(
            f"there is no {path}",
            f"scripts/regression.py --config {configuration.path} --keep makes this one the release",
        )
    evaluation = configuration.values.evaluation
    found = release.compared(release.read(path), release.pairs_of(items), evaluation.margin, evaluation.minimum_pairs)
    print(f"{found.verdict:12} {found.line()}")
    if found.verdict != signals.PASS:
        raise ForgeError(
            f"regression: {found.verdict}, {found.line()}",
            "train on what failed (make feedback lists it), or keep this model as the release on purpose: --keep",
            GATE_NOT_PASSED,
        )


if __name__ == "__main__":
    main()
