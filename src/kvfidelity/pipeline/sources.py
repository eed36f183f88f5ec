"""What a model's or dataset's config entry points to, and whether that is what was fetched.

Before the workflow plans its jobs, `refresh` writes one small file per model and dataset: its
source as configured and, for `source: path`, the content of the files there. This file is an input
of the job that fetches, which keeps a copy of it as an output. So local weights or dialogues that
change are fetched again, and what depends on them runs again.

Content is compared, not times: a project copied without times reruns nothing. Times only say which
files need not be read again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvfidelity.errors import UserError
from kvfidelity.models.revision import model_revision
from kvfidelity.pipeline.rule_params import source_digest, source_entry
from kvfidelity.pipeline.timestamps import LONG_AGO
from kvfidelity.wheels import file_sha256

SECTIONS = ("models", "datasets")
#: A copy of the record, in the folder of what was fetched.
PROVENANCE = "provenance.json"
#: Size, time and digest of local files when they were last read; next to Snakemake's records.
LEDGER = Path(".snakemake/kvfidelity-sources.json")
#: Larger files, such as weights, are read only if there is a reason: their time has changed.
READ_AT_ONCE = 256 << 20
SHA256 = re.compile("[0-9a-f]{64}")
#: What a dataset's provenance repeats of its config entry.
DATASET_KEYS = (
    "package",
    "version",
    "member",
    "path",
    "id",
    "revision",
    "subset",
    "split",
    "file",
)


@dataclass(frozen=True)
class Fetched:
    """Where the files of one model or dataset are: as configured, and as fetched."""

    section: str
    name: str
    entry: Mapping[str, Any]
    root: Path = Path()
    prefix: Path = Path()
    """Of everything that a workflow makes, where another one imports it as a module."""

    @property
    def place(self) -> str:
        """Where its files lie in each folder of its section.

        Datasets of one name but other sources lie next to each other, so that two configurations
        that are run in turn fetch once. Weights are large: a model's folder holds one source.
        """
        return self.name if self.section == "models" else f"{self.name}/{source_digest(self.entry)}"

    @property
    def configured(self) -> Path:
        """The source as configured, an input of the job that fetches."""
        return self._made / "sources" / self.section / f"{self.place}.json"

    @property
    def source(self) -> Path:
        """The source that was fetched, in the same form."""
        return self._made / "provenance/sources" / self.section / f"{self.place}.json"

    @property
    def record(self) -> Path:
        """The provenance of what was fetched."""
        return self._made / "provenance" / self.section / f"{self.place}.json"

    @property
    def folder(self) -> Path:
        """What was fetched."""
        return self._made / self.section / self.place

    @property
    def local(self) -> Path | None:
        """The file or folder that `source: path` names; None for other sources."""
        return self.root / self.entry["path"] if self.entry["source"] == "path" else None

    @property
    def _made(self) -> Path:
        return self.root / self.prefix / "resources"

    def __str__(self) -> str:
        return f"{self.section}.{self.name}"


def fetched_of(
    settings: Mapping[str, Any], root: Path = Path(), prefix: Path = Path()
) -> list[Fetched]:
    """All models and datasets of a configuration."""
    return [
        Fetched(section, name, entry, root, prefix)
        for section in SECTIONS
        for name, entry in settings[section].items()
    ]


def refresh(settings: Mapping[str, Any], root: Path = Path(), prefix: Path = Path()) -> list[str]:
    """Write what each model and dataset points to, for Snakemake to see what has changed.

    Args:
        settings: the checked configuration.
        root: the working directory, which local paths are relative to.
        prefix: of a module, see `Fetched`.

    Returns:
        One line for each that is fetched again, and why.

    Raises:
        UserError: a local file cannot be read.
    """
    ledger = _Ledger(root / LEDGER)
    found = []
    for item in fetched_of(settings, root, prefix):
        try:
            content = _source(item, ledger)
        except PermissionError as error:
            raise UserError(
                f"{item}.path: {error.filename} cannot be read; give yourself access to it"
            ) from None
        reason = _difference(item, content)
        if reason:
            # So that the content differs from what Snakemake recorded, whoever changed it.
            content = content | {"fetched_again": reason}
            found.append(f"{item}: {reason}: it is fetched again, and what was made from it")
        _write(item.configured, content, changed=reason is not None)
    ledger.save()
    return found


def changed_sources(settings: Mapping[str, Any], root: Path = Path()) -> list[tuple[Path, str]]:
    """Records of models and datasets that are not what the configuration points to, and why.

    Reads local files in full.
    """
    ledger = _Ledger(None)
    found = []
    for item in fetched_of(settings, root):
        if item.record.is_file() and (reason := _difference(item, _source(item, ledger))):
            found.append((item.record, reason))
    return found


def note_fetched(configured: Path, record: Path, source: Path) -> None:
    """Keep the source that was fetched, with the digest of the provenance that came of it."""
    content = _read(configured) or {}
    content.pop("fetched_again", None)
    text = json.dumps(content | {"record": file_sha256(record)}, indent=1, sort_keys=True)
    source.parent.mkdir(parents=True, exist_ok=True)
    _replace(source, text)


def local_files(path: Path) -> dict[str, Path]:
    """The regular files that a local source has, by their path in it; hidden ones do not count."""
    if path.is_file():
        return {path.name: path}
    found = {}
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file():
                found[file.relative_to(path).as_posix()] = file
    return found


class _Ledger:
    """Digests of local files, valid while size and time of a file stay the same."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._before = (_read(file) if file else None) or {}
        self._now: dict[str, list[Any]] = {}

    def knows(self, file: Path) -> bool:
        """Whether a file was looked at before and has not been touched since."""
        stat, name = file.stat(), str(file.absolute())
        found = self._before.get(name)
        if found is None or found[:2] != [stat.st_size, stat.st_mtime_ns]:
            return False
        self._now[name] = found
        return True

    def digest(self, file: Path) -> str | None:
        """What was noted for a file that `knows` is true for."""
        digest: str | None = self._now[str(file.absolute())][2]
        return digest

    def note(self, file: Path, digest: str | None) -> str | None:
        """Keep a file's digest, with its size and time."""
        stat = file.stat()
        self._now[str(file.absolute())] = [stat.st_size, stat.st_mtime_ns, digest]
        return digest

    def save(self) -> None:
        """Write what is known of the files that were asked for, if it is new."""
        if self._file and self._now and self._now != self._before:
            self._file.parent.mkdir(exist_ok=True)
            _replace(self._file, json.dumps(self._now))


def _source(item: Fetched, ledger: _Ledger) -> dict[str, Any]:
    """The source as configured, with sizes and digests of local files."""
    content: dict[str, Any] = {"source": source_entry(item.entry)}
    if item.local is None:
        return content
    before = (_read(item.source) or {}).get("files")
    if not item.local.exists():
        # Results copied from elsewhere no longer need it; where it is needed, a check says so.
        return content | ({} if before is None else {"files": before})
    files = {
        name: {"bytes": file.stat().st_size, "sha256": _content(item, name, file, before, ledger)}
        for name, file in local_files(item.local).items()
    }
    return content | {"files": files}


def _content(
    item: Fetched, name: str, file: Path, before: Mapping[str, Any] | None, ledger: _Ledger
) -> str | None:
    """The digest of a local file; None for a large one of which the size was enough so far."""
    if ledger.knows(file):
        return ledger.digest(file)
    size = file.stat().st_size
    if size > READ_AT_ONCE and not item.record.is_file():
        return ledger.note(file, None)
    digest = file_sha256(file)
    known = (before or {}).get(name, {})
    if known.get("bytes") == size and known["sha256"] is None and digest in _recorded(item):
        return ledger.note(file, None)  # the same content with another time
    return ledger.note(file, digest)


def _difference(item: Fetched, content: Mapping[str, Any]) -> str | None:
    """Why what was fetched is not what is configured; None if it is, or if nothing was fetched."""
    if not item.record.is_file():
        return None
    copy = item.folder / PROVENANCE
    if copy.is_file() and copy.read_bytes() != item.record.read_bytes():
        return f"{item.folder} is not what {item.record} describes"
    before = _read(item.source)
    if before is None or before.get("record") != file_sha256(item.record):
        # Fetched by older code, or put there by hand.
        return _other_origin(item) or _unknown_file(item, content.get("files", {}))
    if before["source"] != content["source"]:
        return f"{item.folder} was fetched as configured before: {_plain(before['source'])}"
    return _changed_file(item, before.get("files", {}), content.get("files", {}))


def _plain(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in source.items())


def _other_origin(item: Fetched) -> str | None:
    """Where else the fetched files came from, by their own provenance."""
    record, entry = _read(item.record) or {}, source_entry(item.entry)
    pairs = {key: (record.get(key), entry.get(key)) for key in ("source", *DATASET_KEYS)}
    if item.section == "models":
        pairs = {"source": pairs["source"]}
        pairs["revision"] = (record.get("revision"), model_revision(item.entry))
    for key, (found, wanted) in pairs.items():
        if found != wanted:
            return f"{item.folder} was fetched with {key} {found}, the configuration says {wanted}"
    return None


def _unknown_file(item: Fetched, files: Mapping[str, Any]) -> str | None:
    recorded = _recorded(item)
    for name, about in files.items():
        if about["sha256"] and about["sha256"] not in recorded:
            return f"{_shown(item, name)} is not what was fetched"
    return None


def _changed_file(item: Fetched, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for name in sorted({*before, *now}):
        if name not in now:
            return f"{_shown(item, name)} was fetched and is gone"
        if name not in before:
            return f"{_shown(item, name)} is new since it was fetched"
        if before[name] != now[name]:
            return f"{_shown(item, name)} has changed since it was fetched"
    return None


def _shown(item: Fetched, name: str) -> Path:
    given = Path(item.entry["path"])
    return given if item.local and item.local.is_file() else given / name


def _recorded(item: Fetched) -> frozenset[str]:
    """The digests of all files that the provenance names."""
    return frozenset(SHA256.findall(json.dumps(_read(item.record))))


def _write(file: Path, content: Mapping[str, Any], *, changed: bool) -> None:
    if _read(file) != content:
        file.parent.mkdir(parents=True, exist_ok=True)
        _replace(file, json.dumps(content, indent=1, sort_keys=True))
    # Snakemake compares contents only of files that are newer than what was made from them, and
    # without records only times.
    if not changed and file.stat().st_mtime_ns != LONG_AGO:
        os.utime(file, ns=(LONG_AGO, LONG_AGO))
    elif changed:
        os.utime(file)


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
