#!/usr/bin/env bash
# Makes .venv from requirements.lock; says in one line what is missing if it cannot.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $*" >&2; exit 2; }

python=${PYTHON:-}
for candidate in python3.11 python3.12 python3; do
    [ -n "$python" ] && break
    command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' && python=$candidate
done
[ -n "$python" ] || fail "Python 3.11 or 3.12 is needed and was not found; install it, or set PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || fail "$python is not Python 3.11 or 3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python lacks venv; install it (Debian: apt-get install python3-venv)"

free_mib=$(df -Pm . | awk 'NR==2 {print $4}')
[ "$free_mib" -ge 4096 ] || fail "4 GiB of disk are needed here and $free_mib MiB are free; make room"

[ -x .venv/bin/python ] || "$python" -m venv .venv || fail "could not make a virtual environment in .venv"
install() {
    # --no-compile: below it is done on all cores at once.
    .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check "$@" ||
        fail "pip could not install the packages of requirements.lock: check the network and pip's settings, then run the same command again"
}
# torch first: what needs it then takes the build that is there.
install "$(grep '^torch==' requirements.lock)"
install -r requirements.lock
install --no-deps --no-build-isolation -e .
# Here, not when first imported: where nothing may be written then (PYTHONDONTWRITEBYTECODE, a shared
# read-only folder), every job would compile again, and a worker would take 10 s instead of 5 to start.
# A file that does not compile is one that a package carries for another Python.
.venv/bin/python -m compileall -q -q -j 0 .venv/lib >/dev/null || true
sha256sum requirements.lock pyproject.toml > .venv/installed
