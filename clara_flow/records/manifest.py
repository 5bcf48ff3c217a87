"""The list of a folder's files with sizes and SHA-256: what "sealed" means, and how a change is found."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from clara_flow.errors import PayloadError

VERSION = 1


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: `name` relative to the folder, with `/`; size in bytes; SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A file that is not as the manifest says."""

    name: str
    kind: Literal["changed", "missing", "extra"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A sealed folder.

    digest          SHA-256 (hex) of the sorted names, sizes and checksums: equal digest, equal content.
    created         UTC.
    files           sorted by name.
    work_digest     of what made an operator's outputs (operator, configuration, inputs); "" for an input.
    facts           what else its sealer wanted to keep; JSON.
    """

    digest: str
    created: datetime
    files: tuple[ManifestFile, ...]
    work_digest: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, files: Iterable[ManifestFile], *, work_digest: str = "", facts: Mapping[str, Any] | None = None
    ) -> Manifest:
        """A manifest of these files, made now."""
        ordered = tuple(sorted(files, key=lambda file: os.fsencode(file.name)))
        return cls(
            digest=content_digest(ordered),
            created=datetime.now(UTC),
            files=ordered,
            work_digest=work_digest,
            facts=dict(facts or {}),
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> str:
        """As text; `from_json` reads it."""
        content = {
            "version": VERSION,
            "digest": self.digest,
            "created": self.created.isoformat(),
            "work_digest": self.work_digest,
            "facts": self.facts,
            "files": [asdict(file) for file in self.files],
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read `to_json`'s text. Raises ValueError when it is none, also when its digest does not fit its files."""
        try:
            content = json.loads(text)
            if content["version"] != VERSION:
                raise ValueError(f"version {content['version']} is not {VERSION}")
            manifest = cls(
                digest=content["digest"],
                created=datetime.fromisoformat(content["created"]),
                files=tuple(ManifestFile(**file) for file in content["files"]),
                work_digest=content["work_digest"],
                facts=content["facts"],
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"no manifest: {error!r}") from None
        if manifest.digest != content_digest(manifest.files):
            raise ValueError("no manifest: its digest does not fit its files")
        return manifest

    def differences(self, folder: Path) -> list[Difference]:
        """Where the folder is not as sealed, sorted by name; every file is read. Raises OSError."""
        found = dict(walk(folder))
        listed = {file.name: file for file in self.files}
        result = [Difference(name, "extra") for name in found.keys() - listed.keys()]
        result += [Difference(name, "missing") for name in listed.keys() - found.keys()]
        for name in listed.keys() & found.keys():
            path, file = found[name], listed[name]
            entry = path.lstat()
            if not stat.S_ISREG(entry.st_mode) or entry.st_size != file.size or sha256_of(path) != file.sha256:
                result.append(Difference(name, "changed"))
        return sorted(result, key=lambda difference: os.fsencode(difference.name))


def content_digest(files: Iterable[ManifestFile]) -> str:
    """SHA-256 (hex) over the files, which are sorted by name."""
    rows = [[file.name, file.size, file.sha256] for file in files]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file that is no symlink. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:  # noqa: PTH123 - flags that Path.open lacks
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name relative to the folder, path) of everything below it that is no folder; symlinks are not followed."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*names, *links):
            path = Path(parent) / name
            yield path.relative_to(folder).as_posix(), path


def settle_links(folder: Path) -> None:
    """Make a folder of an operator hold regular files only: a symlink to a file inside becomes a hard link to it.

    Raises PayloadError naming any other symlink (it could lead out of the folder) and any device, pipe or socket.
    """
    root = folder.resolve()
    for name, path in list(walk(folder)):
        if path.is_symlink():
            target = Path(os.path.realpath(path))  # Path.resolve raises on a loop
            if not target.is_relative_to(root) or not target.is_file():
                raise PayloadError(
                    f"{name!r} is a symbolic link to something that is no file of the same folder; "
                    "write the file itself",
                    name=name,
                )
            path.unlink()
            os.link(target, path)
        elif not stat.S_ISREG(path.lstat().st_mode):
            raise PayloadError(f"{name!r} is no file but a device, pipe or socket; only files can be kept", name=name)
