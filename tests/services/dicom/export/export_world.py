"""A house with destinations and deliveries, and an exporter that runs in it."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from services.dicom.export.images import image, write
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.infra.images.catalog import Catalog
from clara_flow.records import deliveries, dicom_config
from clara_flow.records.dicom_models import Delivery, DeliveryItem, DeliveryState, Destination, DestinationKind
from clara_flow.services.dicom.export.exporter import Exporter
from clara_flow.settings import load_settings

FINAL = {DeliveryState.SUCCEEDED, DeliveryState.FAILED}


class World:
    """What the tests act on. Times are short: retries after 50 ms, 2 s for each answer."""

    def __init__(self, engine: sa.Engine, folder: Path, **settings: Any) -> None:
        facts = {"dicom_export_retry_delay_s": 0.05, "dicom_export_timeout_s": 2, "poll_s": 0.5, **settings}
        self.engine = engine
        self.settings = load_settings(data_dir=folder, **facts)
        self.house = House(settings=self.settings, engine=engine, catalog=Catalog({}, {}))

    def destination(self, name: str, port: int = 1, **more: Any) -> Destination:
        """Add one on this machine."""
        facts = {"ae_title": "PEER", "host": "127.0.0.1", "port": port} | more
        return dicom_config.add_destination(self.engine, Destination(name=name, **facts))

    def stow(self, name: str, url: str, **more: Any) -> Destination:
        """Add a DICOMweb destination."""
        row = Destination(name=name, kind=DestinationKind.STOW, url=url, **more)
        return dicom_config.add_destination(self.engine, row)

    def payload(self, *files: Path | bytes) -> tuple[uuid.UUID, list[str]]:
        """A payload with these files (paths are copied); its id, and their uris."""
        folder = self.house.store.create()
        uris = []
        for number, file in enumerate(files):
            uri = f"operators/writer/{number}.dcm"
            (folder.path / uri).parent.mkdir(parents=True, exist_ok=True)
            (folder.path / uri).write_bytes(file if isinstance(file, bytes) else file.read_bytes())
            uris.append(uri)
        return folder.id, uris

    def images(self, count: int, side: int = 16, folder: Path | None = None) -> list[Path]:
        """Files of small images."""
        folder = folder or self.settings.data_dir / "images"
        return [write(image(side, seed=n), folder / f"{uuid.uuid4().hex}.dcm") for n in range(count)]

    def register(
        self, destinations: str | Sequence[str], *files: Path | bytes, agent: str = "ClaraSCU", uris: Sequence[str] = ()
    ) -> list[Delivery]:
        """A delivery of these files for each destination."""
        payload_id, own = self.payload(*files)
        return deliveries.register(
            self.engine,
            job_id=uuid.uuid4(),
            payload_id=payload_id,
            agent=agent,
            parameters=json.dumps(destinations if isinstance(destinations, str) else list(destinations)),
            uris=[*own, *uris],
            own_agents=("ClaraSCU", "DICOMweb"),
        )

    def look(self, delivery: Delivery) -> Delivery:
        """The delivery as it is now."""
        return deliveries.find_delivery(self.engine, delivery.id)

    def items(self, delivery: Delivery) -> list[DeliveryItem]:
        """Its files as they are now."""
        return deliveries.list_items(self.engine, delivery)

    def ended(self, delivery: Delivery, within_s: float = 30) -> Delivery:
        """The delivery once it has ended."""
        eventually(lambda: self.look(delivery).state in FINAL, within_s=within_s)
        row = self.look(delivery)
        print(row.state, row.retries, row.message)  # shown with what fails
        return row

    @contextlib.contextmanager
    def exporting(self, **more: Any) -> Iterator[Exporter]:
        """An exporter that runs."""
        exporter, stop = Exporter(self.house, **more), threading.Event()
        thread = threading.Thread(target=exporter.run, args=(stop,))
        thread.start()
        try:
            yield exporter
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()


MakeWorld = Callable[..., World]
