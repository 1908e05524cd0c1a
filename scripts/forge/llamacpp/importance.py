"""The importance matrix: which weights matter most for the text that the model was trained on.

llama.cpp's own llama-imatrix runs the 16-bit GGUF over training rows and sums up the squares of what enters each
matrix; the quantizer then keeps the weights that meet large ones more exactly. The tool is compiled on first use
(compiling.py). Held-out rows are never read: fidelity is measured on them.
"""

import json
import os
import random
import subprocess
from collections import deque
from collections.abc import Callable
from pathlib import Path

from forge import chat, files
from forge.errors import INTEGRITY, ForgeError
from forge.llamacpp import compiling

TOKENS = 32768  # of training rows at most; 8,192 and 20,480 gave the starter the same within chance
TEXT, MATRIX = "importance.txt", "importance.gguf"
CONTEXT = 512  # llama.cpp's own choice: a row of 512 and its neighbours
IMATRIX = compiling.Tool("llama-imatrix", "about 20 s", ("tools/imatrix/imatrix.cpp",))
ROWS = 4096  # lines looked at: at 8 tokens a row they still fill TOKENS

Say = Callable[[str], None]


def measure(full: Path, dataset: Path, tokenizer, folder: Path, say: Say) -> dict:
    """The matrix of a 16-bit GGUF, written into `folder` as MATRIX. Returns what the record is to tell of it.

    `dataset`: the folder of the rows. Raises ForgeError: 7 without a compiler, 6 when the tool fails.
    """
    built = tool(say)
    text, rows, tokens = calibration(dataset / "train.jsonl", tokenizer)
    files.write_text(folder / TEXT, text)
    context = min(CONTEXT, tokens // 2)
    chunks = min(TOKENS, tokens) // context
    say(f"importance matrix: {chunks * context} tokens of {rows} training rows")
    command = [str(built), "-m", str(full.resolve()), "-f", TEXT, "-o", MATRIX]
    command += ["-c", str(context), "-b", str(context), "-ub", str(context), "--chunks", str(chunks)]
    run(command + ["--parse-special", "--no-ppl", "--output-frequency", str(chunks + 1)], folder, say)
    return {"tokens": chunks * context, "rows": rows, "sha256": files.sha256_file(folder / MATRIX)}


def calibration(path: Path, tokenizer) -> tuple[str, int, int]:
    """Rendered training rows, how many, and their tokens: all of them, or a fixed choice by chance up to TOKENS."""
    text, rows, tokens = "", 0, 0
    for row in sample(path):
        rendered = chat.render(tokenizer, chat.messages_of(row))
        text, rows = text + rendered, rows + 1
        tokens += len(tokenizer(rendered, add_special_tokens=False)["input_ids"])
        if tokens >= TOKENS:
            break
    return text, rows, tokens


def sample(path: Path) -> list[dict]:
    """ROWS lines at most, in an order by chance that is the same each time; the others are not kept in memory."""
    with path.open(encoding="utf-8") as lines:
        count = sum(1 for _ in lines)
    order = random.Random(0).sample(range(count), min(ROWS, count))
    wanted = set(order)
    with path.open(encoding="utf-8") as lines:
        kept = {index: json.loads(line) for index, line in enumerate(lines) if index in wanted}
    return [kept[index] for index in order]


def run(command: list[str], folder: Path, say: Say) -> None:
    """Run llama-imatrix in `folder` and say how long it will take, once it knows."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(compiling.libraries()), "LLAMA_ARG_OFFLINE": "1"}
    last: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            for line in process.stdout:
                last.append(line.strip())
                if " ETA " in line:
                    say(f"  about {line.rpartition(' ETA ')[2].strip()}")
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0 or not (folder / MATRIX).is_file():
        said = [line for line in last if line][-1:] or [f"it ended with {process.returncode}"]
        raise ForgeError(
            f"llama-imatrix failed: {said[0][:200]}",
            "free memory and disk and run make gguf again, or set gguf.importance_matrix to false",
            INTEGRITY,
        )


# -- the tool -----------------------------------------------------------------------------------------------------


def tool(say: Say) -> Path:
    """llama-imatrix, compiled when it is not there yet. Raises ForgeError (7) when that cannot be."""
    return compiling.ready(IMATRIX, say)


# -- for the quantizer --------------------------------------------------------------------------------------------


def entries(path: Path) -> dict[str, object]:
    """Mean square of what entered each column of each matrix, float32 arrays by the weight's name.

    As in llama.cpp's tools/quantize: a matrix (of several experts) that nothing entered counts evenly.
    """
    import gguf
    import numpy as np

    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(str(path)).tensors}
    found = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2"):
            counts = tensors[name.removesuffix(".in_sum2") + ".counts"].reshape(-1, 1)
            matrices = sums.reshape(len(counts), -1)
            mean = np.where(counts > 0, matrices / np.maximum(counts, 1), 1)
            found[name.removesuffix(".in_sum2")] = np.ascontiguousarray(mean, dtype=np.float32).reshape(-1)
    return found
