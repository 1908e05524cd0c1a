"""llama.cpp's own llama-server: several requests at once, answers by JSON schemas. Compiled on first use."""

import os
from pathlib import Path

from forge.llamacpp import compiling
from forge.serving.finished import Finished


def without_pages(source: Path, folder: Path) -> None:
    """The table of the server's web pages, empty: the source has none, llama.cpp's own build would fetch them."""
    values = {"#cmakedefine LLAMA_UI_HAS_ASSETS 1": "", "@N_ASSETS@": "0", "@USE_GZIP@": "false"}
    values |= {"@ASSET_ARRAYS@": "", "@ASSET_TABLE@": ""}
    for name in ("ui.h", "ui.cpp"):
        text = (source / f"tools/ui/{name}.in").read_text(encoding="utf-8")
        for slot, value in values.items():
            text = text.replace(slot, value)
        (folder / name).write_text(text, encoding="utf-8")


# mtmd reads pictures and sounds: the server does not link without it.
SERVER = compiling.Tool(
    "llama-server",
    "about 4 minutes on 2 cores",
    (
        "tools/server/*.cpp",
        "tools/mtmd/mtmd.cpp",
        "tools/mtmd/mtmd-audio.cpp",
        "tools/mtmd/mtmd-image.cpp",
        "tools/mtmd/mtmd-helper.cpp",
        "tools/mtmd/mtmd-helper-gen.cpp",
        "tools/mtmd/clip.cpp",
        "tools/mtmd/models/*.cpp",
        "vendor/hash/hash.cpp",
        "vendor/hash/*/*.c",
        "vendor/cpp-httplib/httplib.cpp",
    ),
    ("tools/server", "tools/mtmd", "vendor/hash"),
    without_pages,
    "-O1",  # 222 s on 2 cores with other work
)


def command(built: Path, model: Finished, context: int, serve: dict) -> list[str]:
    """What to run. `serve`: the section of the config. The chat template is the file's own, the server's default."""
    sampling = model.sampling  # for clients that name none
    return [
        str(built),
        *("--model", str(model.path)),
        *("--alias", model.project["name"]),
        *("--host", serve["host"]),
        *("--port", str(serve["port"])),
        *("--ctx-size", str(context * serve["parallel"])),  # it is divided among them
        *("--parallel", str(serve["parallel"])),
        *("--temp", str(sampling["temperature"])),
        *("--top-p", str(sampling["top_p"])),
        *("--repeat-penalty", str(sampling["repeat_penalty"])),
        *("--cors-origins", "localhost"),
        *("--no-ui", "--no-slots", "--offline"),
    ]


def environment(key: str | None) -> dict[str, str]:
    """Of the process: the key, llama.cpp's libraries, and no LLAMA_ARG_ variable that would change a setting."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    kept["LD_LIBRARY_PATH"] = str(compiling.libraries())
    return kept | ({"LLAMA_API_KEY": key} if key else {})
