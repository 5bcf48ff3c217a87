"""DICOMweb servers that inference requests name for their results (`outputResources`), as destinations.

They stand in no configuration: there is one for as long as something waits for it. All requests that name one address
share its queue, and each delivery logs in as its own request says.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import sqlalchemy as sa

from clara_flow.errors import NotFound
from clara_flow.records import inference
from clara_flow.records.deliveries import Queue
from clara_flow.records.dicom_models import Destination, DestinationKind
from clara_flow.services.dicom.export.leases import Hold
from clara_flow.services.dicom.export.sender import DestinationFailed, Sender, Unusable
from clara_flow.services.dicom.export.senders import client_context
from clara_flow.services.dicom.export.stow import StowSender
from clara_flow.settings import Settings


class Outputs:
    """For the exporter's thread; senders are for any."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings, self._engine = settings, engine
        self._known: dict[str, Destination] = {}

    def look(self, waiting: Iterable[Queue]) -> list[Destination]:
        """Those that something waits for, or is delivered to. One of no request that is known is none."""
        names = {queue.destination for queue in waiting if inference.is_output(queue.destination)}
        self._known = {name: found for name in names if (found := self._find(name)) is not None}
        return list(self._known.values())

    def sender(self, destination: Destination) -> Sender:
        """For one thread."""
        try:
            return StowSender(
                destination.url,
                timeout_s=self._settings.dicom_export_timeout_s,
                verify=client_context(self._settings) if destination.url.startswith("https:") else False,
                login=self._login,
            )
        except DestinationFailed as failure:
            return Unusable(failure)

    def _find(self, name: str) -> Destination | None:
        if name in self._known:
            return self._known[name]
        try:
            output = inference.output_waited_for(self._engine, name)
        except NotFound:
            return None
        now = datetime.now(UTC)
        return Destination(name=name, kind=DestinationKind.STOW, url=output.uri, created=now, updated=now)

    def _login(self, hold: Hold) -> dict[str, str]:
        output = inference.output_of(self._engine, hold.delivery_id)
        return {"Authorization": output.authorization} if output.authorization else {}
