#!/usr/bin/env bash
# Make the virtual environment: scripts/setup_environment.sh light|full|dev
#
#   light   Python 3.11 to 3.13, an environment, PyYAML and pydantic: enough for make to read the config
#   full    the pinned packages, llama-cpp-python built from its source distribution, and out of that same
#           archive llama.cpp's converter: one pin, one commit
#   dev     what the tests and linters need
#
# Reads VENV (default .venv), TORCH (empty, cpu, cu126, cu130), LLAMA_CUDA (1 builds llama.cpp with CUDA),
# PYTHON3 (a Python to use). Killed half-way and run again, it finishes. Nothing is ever installed into an
# environment that this script did not create.
set -euo pipefail

venv=${VENV:-.venv}
pins=requirements-finetuning.txt
mark="$venv/model-forge.created"

fail() { # cause, remedy, code
  printf 'FAIL %s\n  do %s\n' "$1" "$2" >&2
  exit "${3:-7}"
}

version_ok() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

# A name on PATH may be a shim that fails when it is run, so each candidate is run, not only found.
find_python() {
  local candidate
  if [ -n "${PYTHON3:-}" ]; then
    version_ok "$PYTHON3" || fail "PYTHON3=$PYTHON3 is no Python 3.11 to 3.13" "name another one"
    echo "$PYTHON3"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3 "$HOME/.local/bin/python3.11" "$HOME/.local/bin/python3.12"; do
    if version_ok "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 to 3.13 found (python3 is $(python3 -V 2>/dev/null || echo missing))" \
    "sudo add-apt-repository ppa:deadsnakes/ppa && sudo apt install python3.11 python3.11-venv (Ubuntu 22.04), or name one: make setup PYTHON3=/path/to/python3.11"
}

# A conda environment has no pyvenv.cfg: whatever is there already and lacks our mark is somebody's.
foreign() { [ ! -e "$mark" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; }

pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --quiet "$@"; }

light() {
  if foreign; then
    "$venv/bin/python" -c 'import yaml, pydantic' 2>/dev/null ||
      fail "$venv was not made by this set-up and lacks PyYAML or pydantic" "install them there yourself, or leave VENV out"
    touch "$venv/light.ok" 2>/dev/null || fail "$venv is not writable" "leave VENV out"
    return
  fi
  local python
  python=$(find_python)
  echo "set-up: $("$python" -V) in $venv"
  mkdir -p "$venv"
  touch "$mark" # first: a creation that is killed half-way is still known as ours
  "$python" -m venv "$venv" ||
    fail "$python cannot make a virtual environment" "install its venv module, for example: sudo apt install python3-venv"
  pip_install --constraint "$pins" PyYAML pydantic || fail "pip could not install PyYAML and pydantic" "check the network"
  touch "$venv/light.ok"
}

pin_of() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" "$pins"; }

install_packages() {
  local torch options=()
  torch=$(pin_of torch)
  case "${TORCH:-}" in
    "") ;;
    cpu | cu126 | cu130)
      # The local version (+cu126) names the wheel without doubt; PyPI has only the default one.
      pip_install "torch==$torch+$TORCH" --extra-index-url "https://download.pytorch.org/whl/$TORCH" ||
        fail "no torch $torch for TORCH=$TORCH" "see docs/environment.md for what each driver needs"
      ;;
    *) fail "TORCH=$TORCH is unknown" "TORCH=cpu, cu126 or cu130, or leave it out" 2 ;;
  esac
  grep -v '^llama-cpp-python==' "$pins" >"$venv/requirements.partial"
  pip_install "${options[@]}" --requirement "$venv/requirements.partial" ||
    fail "pip could not install $pins" "check the network and the disk, then run make setup again: it goes on"
}

# The archive holds bindings, library and converter: all of one commit.
fetch_llama() { # folder
  local version
  version=$(pin_of llama-cpp-python)
  [ -f "$1/$version.complete" ] && return
  rm -rf "$1" && mkdir -p "$1"
  # pip asks the build for its metadata while downloading, which needs nothing compiled.
  "$venv/bin/python" -m pip download --disable-pip-version-check --quiet --no-deps --no-binary llama-cpp-python \
    --dest "$1" "llama-cpp-python==$version" || fail "pip could not get llama-cpp-python $version" "check the network"
  tar -xzf "$1/llama_cpp_python-$version.tar.gz" -C "$1" --strip-components=1
  rm "$1/llama_cpp_python-$version.tar.gz"
  touch "$1/$version.complete"
}

build_llama() {
  local version wanted before compiler
  version=$(pin_of llama-cpp-python)
  before=$(sed -n 's/.* cuda=//p' "$venv/llama.built" 2>/dev/null || true)
  LLAMA_CUDA=${LLAMA_CUDA:-${before:-0}} # what was chosen once stays, until another choice is named
  wanted="$version no-amx cuda=$LLAMA_CUDA"
  [ "$(cat "$venv/llama.built" 2>/dev/null)" = "$wanted" ] && return
  compiler=$(command -v "${CXX:-c++}" || command -v g++ || command -v clang++) ||
    fail "no C++ compiler" "sudo apt install build-essential"
  local options=(-C cmake.define.LLAVA_BUILD=OFF) # pictures are not read here
  # On Xeons with AMX (Sapphire Rapids and later) this llama.cpp crashes at the first batch, in ldtilecfg of
  # ggml_backend_amx_mul_mat. Compilers that do not know the flags know no AMX either.
  local no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  # shellcheck disable=SC2086 # several flags
  if "$compiler" $no_amx -x c++ -E /dev/null >/dev/null 2>&1; then
    options+=(-C "cmake.define.CMAKE_CXX_FLAGS=$no_amx" -C "cmake.define.CMAKE_C_FLAGS=$no_amx")
  fi
  if [ "$LLAMA_CUDA" = 1 ]; then
    command -v nvcc >/dev/null || fail "LLAMA_CUDA=1 needs nvcc" "install the CUDA toolkit of your driver, or leave it out"
    options+=(-C cmake.define.GGML_CUDA=ON)
  elif command -v nvidia-smi >/dev/null; then
    echo "note: llama.cpp is built for the CPU; make setup LLAMA_CUDA=1 builds it for your GPU"
  fi
  echo "set-up: building llama.cpp (some minutes)"
  pip_install --force-reinstall --no-deps "${options[@]}" "$venv/src" ||
    fail "llama-cpp-python could not be built" "see the compiler's message above; it needs a C++17 compiler and free memory"
  ln -sfn src/vendor/llama.cpp "$venv/llama.cpp"
  rm -rf "$venv/src/_skbuild" "$venv/src/build"
  echo "$wanted" >"$venv/llama.built"
}

full() {
  if foreign; then
    check_foreign
    return
  fi
  install_packages
  fetch_llama "$venv/src"
  build_llama
  touch "$venv/ready.ok"
  echo "set-up: done"
}

# Somebody's own environment: looked at, never changed. Only the converter's source is put beside it.
check_foreign() {
  local missing
  missing=$("$venv/bin/python" - <<'PY'
from importlib.util import find_spec
needed = "torch transformers trl peft bitsandbytes accelerate datasets llama_cpp gguf yaml pydantic dotenv psutil"
needed += " markdown_it docutils bs4 markdownify mammoth pypdf rensa detect_secrets phonenumbers"
needed += " fastapi uvicorn sse_starlette starlette_context pydantic_settings"
print(" ".join(name for name in needed.split() if find_spec(name) is None))
PY
  )
  [ -z "$missing" ] || fail "$venv lacks $missing, and nothing is installed into an environment that is not ours" \
    "install them there yourself, or leave VENV out"
  if [ -z "${LLAMA_CPP:-}" ]; then
    fetch_llama .llama.cpp.source
    ln -sfn .llama.cpp.source/vendor/llama.cpp .llama.cpp
  fi
  touch "$venv/ready.ok"
}

dev() {
  foreign || pip_install --requirement requirements-dev.txt || fail "pip could not install requirements-dev.txt" "check the network"
  touch "$venv/dev.ok"
}

case "${1:-}" in
  light | full | dev) "$1" ;;
  *) fail "unknown step '${1:-}'" "scripts/setup_environment.sh light|full|dev" 2 ;;
esac
