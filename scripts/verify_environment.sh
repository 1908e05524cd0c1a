#!/usr/bin/env bash
# Check that this machine can run the pipeline: the project's Python first, then everything else.
#   bash scripts/verify_environment.sh [--config FILE] [--json FILE]
# VENV names another environment than .venv. Exit code 0: ready; 7: not ready.
set -euo pipefail

fail() {
    printf 'FAIL %s\n  do %s\n' "$1" "$2" >&2
    exit 7
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ . -ef "$root" ]] || fail "$PWD is not the checkout's root" "cd '$root', then run the same command again"

venv="${VENV:-.venv}"
venv="${venv/#\~\//$HOME/}" # make and quotes pass a ~ on as it is
python="$venv/bin/python"
[[ -x "$python" ]] || fail "no Python environment in $venv" "run make setup (or name an existing one: VENV=~/ml_env)"
# Running it is the only proof: a moved environment and a shim of a version manager exist and fail.
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 ||
    fail "$python does not run, or is older than Python 3.11" \
        "run make setup PYTHON3=/path/to/python3.11 (docs/environment.md says where to get one)"

exec "$python" scripts/verify_environment.py "$@"
