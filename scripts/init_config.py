"""Make a config of your own from a preset: make init PRESET=qwen2-7b-8gb.

Writes config/local/<preset>.yaml, which git ignores. An existing file is never overwritten.
"""

import re
from pathlib import Path

from forge import command, files
from forge.errors import ForgeError

PRESETS = Path("config/presets")


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--preset", default="", help="a name from config/presets/")
    arguments = parser.parse_args()
    command.guard(lambda: init(arguments.preset), debug=arguments.debug)


def init(name: str) -> None:
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise ForgeError(f"no preset {name!r}", f"make init PRESET=NAME with one of: {', '.join(known)}")
    target = Path("config/local") / f"{name}.yaml"
    if target.exists():
        raise ForgeError(f"{target} exists already", "edit it, or move it away first")
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^#   make all CONFIG=.*\n# or `make init.*\n", f"#   make all CONFIG={target}\n", text, flags=re.M)
    files.write_text(target, text)
    print(f"wrote {target}: edit it, then run make all CONFIG={target}")


if __name__ == "__main__":
    main()
