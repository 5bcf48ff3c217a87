"""The table of operators that a terminal shows while the pool runs a job."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from clara_flow.deployments.watch import Progress
    from clara_flow.records.models import JobOperator

STYLES = {
    "Pending": "dim",
    "WaitingForResources": "yellow",
    "Running": "bold cyan",
    "Completed": "green",
    "Cached": "green",
    "Skipped": "magenta",
    "Cancelled": "magenta",
}


class LiveTable:
    """One row per operator. On a terminal it is redrawn in place; elsewhere each change is one printed line."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._console = console
        self._progress: Progress | None = None
        self._said: dict[str, str] = {}
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Callable[[Progress], None]:
        """Start drawing; what is returned takes the job's progress."""
        if self._console.is_terminal:
            self._live.start()
        return self._take

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Draw the last state and stop."""
        if self._console.is_terminal:
            self._live.stop()

    def _take(self, progress: Progress) -> None:
        self._progress = progress
        if not self._console.is_terminal:
            for row in progress.operators:
                took = f" ({row.run_time_s:.1f} s)" if row.run_time_s is not None else ""
                line = f"{row.name}: {row.detail}{took} {self._note(row)}".rstrip()
                if row.detail != "Pending" and self._said.get(row.name) != line:
                    self._said[row.name] = line
                    self._console.print(Text(f"  {line}"), soft_wrap=True)

    def _note(self, row: JobOperator) -> str:
        if row.detail == "WaitingForResources" and self._progress is not None:
            return self._progress.reasons.get(row.name, "")
        return row.message

    def _render(self) -> Table:
        table = Table(title=self._title, title_justify="left", expand=False)
        table.add_column("operator")
        table.add_column("state")
        table.add_column("run time", justify="right")
        table.add_column("peak memory", justify="right")
        table.add_column("", overflow="ellipsis", no_wrap=True, max_width=60)
        for row in self._progress.operators if self._progress else ():
            run_time = row.run_time_s
            if row.detail == "Running" and row.started is not None:
                run_time = (datetime.now(UTC) - row.started).total_seconds()
            peak = row.peak_memory_bytes
            table.add_row(
                row.name,
                Text(row.detail, style=STYLES.get(row.detail, "bold red")),
                f"{max(run_time, 0):.1f} s" if run_time is not None else "",
                f"{peak / 2**20:.0f} MiB" if peak else "",
                self._spinner if row.detail == "Running" else Text(self._note(row), style="dim"),
            )
        return table
