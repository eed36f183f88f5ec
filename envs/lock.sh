#!/usr/bin/env bash
# Writes requirements.lock and envs/build.lock, with hashes, from the versions that .venv holds.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
.venv/bin/python -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check uv==0.13.9
.venv/bin/python -m pip freeze --all --exclude-editable --disable-pip-version-check |
    sed 's/+cpu$//' > "$tools/versions.txt"
compile() {
    # --no-config: no settings of this machine reach the lock.
    "$tools/venv/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 \
        --generate-hashes --no-header --no-annotate --constraint "$tools/versions.txt" "$@"
}
compile envs/build.in > "$tools/build.lock"
# Torch and its CUDA libraries are left out; envs/torch.txt says why.
compile pyproject.toml --extra workflow --extra dev |
    awk '/^[A-Za-z0-9]/ {out = /^(torch|triton)==|^(nvidia|cuda)-/} !out' > "$tools/lock"
{ sed -n '/^#/p' requirements.lock; cat "$tools/lock"; } > "$tools/requirements.lock"
mv "$tools/requirements.lock" requirements.lock
mv "$tools/build.lock" envs/build.lock
