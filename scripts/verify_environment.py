"""Check that this machine can run the pipeline for a config; change nothing.

    bash scripts/verify_environment.sh                 (finds the environment's Python)
    python scripts/verify_environment.py --config config/presets/qwen2-7b-8gb.yaml --json environment.json

Each library does a little real work (a matrix product, a 4-bit layer, a tiny model, a vocabulary): an import
alone proves little. One row a check, with its level and its state:

    ok     checked and fine          warn   works, but is slower or riskier than it need be
    FAIL   does not work             skip   not there or not needed here, so not checked

Below a row that is not ok stands what to do. The last line counts the states and says whether the machine is
ready: it is when no critical or required check failed. Exit code 0 then, else 7. --json writes the same.
"""

import os
import sys
from pathlib import Path

try:
    from forge import command, config, files
    from forge.environment import checks
    from forge.environment.machine import Machine
    from forge.errors import ENVIRONMENT
except ImportError as error:  # PyYAML or pydantic: without them not even the config can be read
    print(f"FAIL {sys.executable}: {error}\n  do run make setup", file=sys.stderr)
    sys.exit(7)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON, too")
    arguments = parser.parse_args()
    command.guard(lambda: verify(arguments), debug=arguments.debug)


def verify(arguments) -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may not fit the terminal's encoding
    machine = Machine(Path.cwd(), config.load(arguments.config))
    report = checks.examine(machine, debug=arguments.debug)
    if arguments.json:
        files.write_json(arguments.json, report)
    print(report["summary"], flush=True)
    if not report["ready"]:
        # An exception would print its cause below the summary, which is to stay the last line. Leaving at
        # once spares the tear-down of libraries that may just have shown to be broken.
        os._exit(ENVIRONMENT)


if __name__ == "__main__":
    main()
