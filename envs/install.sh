#!/usr/bin/env bash
# Makes .venv from requirements.lock, envs/build.lock and envs/torch.txt. If it cannot, it says in one line what is missing.
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
    # --no-compile: compileall below uses all cores.
    .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check "$@" ||
        fail "pip could not install the packages of requirements.lock: check the network and pip's settings, then run the same command again"
}
# Only files whose hashes are in the locks, and what builds them is locked too. --no-deps: the lock
# is complete, and what it lacks must not come without a hash.
locked() { install --require-hashes --no-deps "$@"; }
locked -r envs/build.lock
locked --no-build-isolation -r requirements.lock
# Exempt from hashes: the file says why.
install -r envs/torch.txt
install --no-deps --no-build-isolation -e .
# Python compiles a module at its first import, but cannot keep the result where nothing may be
# written (PYTHONDONTWRITEBYTECODE, a shared read-only folder). Every job would then compile again, and
# a worker would start in 10 s instead of 5. Some packages contain files for other versions of Python;
# these do not compile, and their errors are ignored.
.venv/bin/python -m compileall -q -q -j 0 .venv/lib >/dev/null || true
sha256sum requirements.lock envs/build.lock envs/torch.txt pyproject.toml > .venv/installed
