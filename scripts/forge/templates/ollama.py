"""Ollama's TEMPLATE: what a Modelfile may hold so that Ollama writes a prompt as the model's own chat template does.

This folder has one for each way of writing that is known here. trim.gotmpl goes in front of those that take white
space off: Go has nothing for that. (It takes off ASCII's; Jinja takes off that of all scripts.) A TEMPLATE is written
into a Modelfile only where its text was equal to that of the model's template in every conversation. Ollama hands the
text to llama.cpp, which puts the start token in front when the file says so: a TEMPLATE must not begin with it. Tools
are not in them. tests/test_templates.py compares `render` with Go.
"""

import functools
from pathlib import Path

from forge.templates import gotemplate

FOLDER = Path(__file__).parent
TRIM = "trim"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.gotmpl") if path.stem != TRIM)


def text(name: str) -> str:
    """The whole TEMPLATE of that name."""
    body = (FOLDER / f"{name}.gotmpl").read_text(encoding="utf-8")
    trim = (FOLDER / f"{TRIM}.gotmpl").read_text(encoding="utf-8")
    return trim + body if f'template "{TRIM}"' in body else body


@functools.cache
def parsed(name: str) -> gotemplate.Template:
    return gotemplate.Template(text(name))


def collate(turns: list[dict]) -> list[dict]:
    """Turns as Ollama hands them to a TEMPLATE: neighbours of one role are one turn, an empty line between them."""
    found: list[dict] = []
    for turn in turns:
        if found and found[-1]["role"] == turn["role"]:
            found[-1]["content"] += "\n\n" + turn["content"]
        else:
            found.append({"role": turn["role"], "content": turn["content"]})
    return found


def render(name: str, turns: list[dict]) -> str | None:
    """The prompt that Ollama makes of a conversation; None where the TEMPLATE refuses it."""
    messages = [{"Role": turn["role"], "Content": turn["content"]} for turn in collate(turns)]
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    try:
        return parsed(name).render({"System": system, "Messages": messages, "Response": ""})
    except gotemplate.Failed:
        return None


def choose(asked: dict[str, list[dict]], wanted: dict[str, str | None]) -> tuple[str | None, str]:
    """Name of the first TEMPLATE that writes every conversation as `wanted` (None: refuses it), and "" or else None
    and the reason. `asked` and `wanted` have the same keys, which name the conversations."""
    differing = {name: [key for key, turns in asked.items() if render(name, turns) != wanted[key]] for name in names()}
    nearest = min(differing, key=lambda name: len(differing[name]))
    wrong = differing[nearest]
    if not wrong:
        return nearest, ""
    shown = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
    return None, (
        f"none that is known here writes all {len(asked)} conversations as the model's chat template does; "
        f"the nearest, {nearest}, writes {len(wrong)} otherwise: {shown}"
    )
