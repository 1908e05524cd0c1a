"""A GGUF file's metadata as JSON, read by llama.cpp's own parser: run by llama.header in a process of its own.

    python -P header.py LIBGGML_BASE FILE BYTES

The file may be anybody's. llama.cpp's parser checks every length against what is left of the file; gguf's reader in
Python does not (a crafted file of 49 bytes keeps it busy until memory runs out) and takes 20 s for a vocabulary of
150,000 tokens. Whatever goes wrong all the same goes wrong in here: this process may have BYTES of memory, and its
parent ends it in time. A list of more than LONGEST_LIST entries (tokens, scores, merges) is given as null.
"""

import ctypes
import json
import os
import resource
import sys
from pathlib import Path

LONGEST_LIST = 64
MOST_TEXT = 1 << 24  # bytes of JSON; chat templates have 100 KB at most
# gguf_type's numbers (gguf.h): the end of the function that gets such a value, and its type in C.
TYPES = {
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float),
    7: ("bool", ctypes.c_bool),
    8: ("str", ctypes.c_char_p),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
    12: ("f64", ctypes.c_double),
}
STRING, ARRAY = 8, 9


class Start(ctypes.Structure):
    """gguf_init_params: no tensor is read."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class Header:
    """An open file's header. Ends the process for a file that llama.cpp cannot read, or that ends too early."""

    def __init__(self, library: str, path: str):
        self.library = ctypes.CDLL(library)
        start = self.library.gguf_init_from_file
        start.argtypes, start.restype = (ctypes.c_char_p, Start), ctypes.c_void_p
        self.file = start(os.fsencode(path), Start(True, None))
        if not self.file:
            sys.exit(1)  # llama.cpp said why
        last = self.get("n_tensors", ctypes.c_int64) - 1
        if last >= 0:  # llama.cpp has seen that they lie one after the other
            place = (self.get(f"tensor_{what}", ctypes.c_size_t, last) for what in ("offset", "size"))
            if Path(path).stat().st_size < self.get("data_offset", ctypes.c_size_t) + sum(place):
                sys.exit("it ends before its weights do")

    def get(self, what: str, kind: type, *which: int) -> object:
        function = getattr(self.library, f"gguf_get_{what}")
        function.argtypes, function.restype = (ctypes.c_void_p, *[ctypes.c_int64] * len(which)), kind
        return function(self.file, *which)

    def value(self, index: int) -> object:
        kind = self.get("kv_type", ctypes.c_int, index)
        if kind == ARRAY:
            return self.values(index)
        name, of = TYPES[kind]
        found = self.get(f"val_{name}", of, index)
        return found.decode("utf-8") if kind == STRING else found

    def values(self, index: int) -> list | None:
        count, kind = self.get("arr_n", ctypes.c_size_t, index), self.get("arr_type", ctypes.c_int, index)
        if count > LONGEST_LIST:
            return None
        if kind == STRING:
            return [self.get("arr_str", ctypes.c_char_p, index, place).decode("utf-8") for place in range(count)]
        return self.get("arr_data", ctypes.POINTER(TYPES[kind][1]), index)[:count] if count else []

    def metadata(self) -> dict[str, object]:
        count = self.get("n_kv", ctypes.c_int64)
        return {self.get("key", ctypes.c_char_p, index).decode("utf-8"): self.value(index) for index in range(count)}


def main() -> None:
    library, path, memory = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    text = json.dumps(Header(library, path).metadata())
    if len(text) > MOST_TEXT:
        sys.exit(f"its metadata has {len(text)} letters")
    print(text)


if __name__ == "__main__":
    main()
