"""Where the adapter keeps what it has, below the data folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clara_flow.settings import Settings


@dataclass(frozen=True, slots=True)
class Places:
    """spool: received instances and journals. work: where the adapter's processes run. heartbeats: signs of life."""

    spool: Path
    work: Path

    @classmethod
    def of(cls, settings: Settings) -> Places:
        """Of this data folder. The spool lies beside the payloads, so that instances become payloads by hard links."""
        return cls(spool=settings.data_dir / "spool", work=settings.data_dir / "dicom")

    @property
    def heartbeats(self) -> Path:
        """A file for each loop."""
        return self.work / "heartbeats"

    @property
    def listener_config(self) -> Path:
        """What listeners know of the configuration."""
        return self.spool / "config.json"
