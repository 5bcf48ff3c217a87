"""Names that the shell may complete (`clara-flow --install-completion`): asked of the records when Tab is pressed."""

from __future__ import annotations

from collections.abc import Callable

import typer

Complete = Callable[[typer.Context, str], list[str]]


def names_of(listing: str, column: str = "name") -> Complete:
    """Completes what stands in `column` of the rows that `records.dicom_config.<listing>` gives."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        from clara_flow.cli.records import records
        from clara_flow.errors import ClaraFlowError
        from clara_flow.records import dicom_config

        try:
            with records(ctx.params.get("data_dir")) as engine:
                names = [str(getattr(row, column)) for row in getattr(dicom_config, listing)(engine)]
        except ClaraFlowError:  # no platform, no names: Tab is no place for messages
            return []
        return [name for name in names if name.startswith(incomplete)]

    return complete
