"""What listeners must know of the configuration, as a file: they need no database, and go on without one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clara_flow.records.durable import write_durably


@dataclass(frozen=True, slots=True, kw_only=True)
class AeTitleRule:
    """One of our AE titles; see `records.dicom_models.AeTitle`."""

    name: str
    ae_title: str
    ignored_sop_classes: tuple[str, ...] = ()
    overwrite_same_instance: bool = False
    require_release: bool = False
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRule:
    """Who may send; see `records.dicom_models.SourceNode`."""

    ae_title: str
    host: str
    maximum_associations: int | None = None
    user_name: str = ""
    user_secret: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitterRule:
    """A destination that is asked for storage commitment, and may call to report; see `records.dicom_models`.

    called      how it knows us.
    """

    ae_title: str
    host: str
    called: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerConfig:
    """AE titles by themselves, sources, committers, and the attributes (GGGGEEEE) that some AE title groups by."""

    aetitles: Mapping[str, AeTitleRule] = field(default_factory=dict)
    sources: tuple[SourceRule, ...] = ()
    committers: tuple[CommitterRule, ...] = ()
    group_tags: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As text; `from_json` reads it."""
        content = {
            "aetitles": [asdict(rule) for rule in self.aetitles.values()],
            "sources": [asdict(rule) for rule in self.sources],
            "committers": [asdict(rule) for rule in self.committers],
            "group_tags": self.group_tags,
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ListenerConfig:
        """Raises ValueError, KeyError or TypeError for a text that is none."""
        content = json.loads(text)
        rules = [
            AeTitleRule(**{**rule, "ignored_sop_classes": tuple(rule["ignored_sop_classes"])})
            for rule in content["aetitles"]
        ]
        return cls(
            aetitles={rule.ae_title: rule for rule in rules},
            sources=tuple(SourceRule(**rule) for rule in content["sources"]),
            committers=tuple(CommitterRule(**rule) for rule in content["committers"]),
            group_tags=tuple(content["group_tags"]),
        )

    def write(self, path: Path) -> None:
        """Replace the file, durably. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, self.to_json())


class ListenerConfigFile:
    """The file, read again when it was replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._config = ListenerConfig()

    def current(self) -> ListenerConfig:
        """What it says now; nothing is configured while there is none. Raises OSError, ValueError."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._seen, self._config = None, ListenerConfig()
            return self._config
        seen = status.st_ino, status.st_mtime_ns
        if seen != self._seen:
            self._config = ListenerConfig.from_json(self.path.read_text(encoding="utf-8"))
            self._seen = seen
        return self._config
