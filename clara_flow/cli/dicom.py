"""`clara-flow dicom`: who may send studies, what becomes of them, where results go."""

from __future__ import annotations

import typer

from clara_flow.cli import dicom_aetitle, dicom_destination, dicom_groups, dicom_reports, dicom_source

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(dicom_aetitle.app, name="aetitle")
app.add_typer(dicom_source.app, name="source")
app.add_typer(dicom_destination.app, name="destination")
dicom_groups.register(app)
app.command("reports")(dicom_reports.reports)


@app.callback()
def dicom() -> None:
    """Say who may send studies, what becomes of them, and where results go. Changes take effect at once.

    \b
    Examples: clara-flow dicom aetitle add BRAIN --pipeline brain-extraction --timeout 2
              clara-flow dicom source add MODALITY --host 127.0.0.1
              clara-flow dicom destination add PACS --aetitle ORTHANC --host 127.0.0.1 --port 4242
    """
