"""What the supervisor supervises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar


class Service(ABC):
    """One service of the platform: ours, or an external one that is only looked at.

    name        as `clara-flow status` shows it.
    title       as messages call it.
    address     where clients find it, without passwords.
    log_path    the log of ours; None for an external one.
    needs_earlier   whether it can be started only when the one before it answers; else both start at once.
    """

    name: str
    title: str
    address: str
    log_path: Path | None = None
    needs_earlier: ClassVar[bool] = True

    @property
    def is_external(self) -> bool:
        """Whether somebody else starts and stops it."""
        return self.log_path is None

    @property
    def pid(self) -> int | None:
        """Process id of ours; None when it does not run, or is external."""
        return None

    def prepare(self) -> None:
        """Clear away what a killed supervisor left that is in the way, and look whether `start` can succeed.

        All services are prepared before the first is started, so that a wrong setting is told at once. Raises a
        ClaraFlowError.
        """
        return

    @abstractmethod
    def start(self) -> None:
        """Start it; it may answer later (`problem`). Raises a ClaraFlowError when it cannot be started."""

    @abstractmethod
    def is_alive(self) -> bool:
        """Whether there is something to wait for: False means that only a new start helps."""

    @abstractmethod
    def problem(self) -> str:
        """Why it does not answer now; "" when it does. Returns within seconds."""

    def end(self) -> bool:
        """Stop it if it is ours, and what an earlier supervisor left of it. Returns whether anything ran.

        Raises a ClaraFlowError when it does not stop.
        """
        return False
