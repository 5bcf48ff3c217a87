"""The table of operators that a terminal shows while a job runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from clara_flow.tasks.job_context import OperatorNews

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

    def __init__(self, title: str, operators: tuple[str, ...], console: Console) -> None:
        self._title = title
        self._console = console
        self._events: dict[str, OperatorNews | None] = dict.fromkeys(operators)
        self._since: dict[str, float] = {}
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Callable[[OperatorNews], None]:
        """Start drawing; what is returned takes the job's events, from any thread."""
        if self._console.is_terminal:
            self._live.start()
        return self._take

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Draw the last state and stop."""
        if self._console.is_terminal:
            self._live.stop()

    def _take(self, event: OperatorNews) -> None:
        self._events[event.operator] = event
        self._since[event.operator] = time.monotonic()
        if not self._console.is_terminal:
            took = f" ({event.run_time_s:.1f} s)" if event.run_time_s is not None else ""
            self._console.print(
                Text(f"  {event.operator}: {event.state}{took} {event.message}".rstrip()), soft_wrap=True
            )

    def _render(self) -> Table:
        table = Table(title=self._title, title_justify="left", expand=False)
        table.add_column("operator")
        table.add_column("state")
        table.add_column("run time", justify="right")
        table.add_column("peak memory", justify="right")
        table.add_column("", overflow="ellipsis", no_wrap=True, max_width=60)
        for operator, event in self._events.items():
            state = event.state if event else "Pending"
            run_time = event.run_time_s if event else None
            if state == "Running":
                run_time = time.monotonic() - self._since[operator]
            peak = event.peak_memory_bytes if event else None
            table.add_row(
                operator,
                Text(state, style=STYLES.get(state, "bold red")),
                f"{run_time:.1f} s" if run_time is not None else "",
                f"{peak / 2**20:.0f} MiB" if peak else "",
                self._spinner
                if state == "Running" and not event
                else Text(event.message if event else "", style="dim"),
            )
        return table
