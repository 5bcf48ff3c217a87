"""What goes on at the DICOM side, for people who look: what came, and what waits for which destination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from clara_flow.records import dicom_config
from clara_flow.records.database import statements
from clara_flow.records.delivery_queries import queues
from clara_flow.records.inference import is_output
from clara_flow.services.dicom.block_nodes import unused_blocks
from clara_flow.services.dicom.export.breaker import BreakerState
from clara_flow.services.dicom.heartbeats import Beat, associations, destination_beat, read_all
from clara_flow.services.dicom.places import Places
from clara_flow.settings import Settings

RECEIVED = sa.text("""
SELECT count(*) FILTER (WHERE state IN ('OPEN', 'COMPLETE')), count(*) FILTER (WHERE state = 'FAILED'),
       max(last_arrival)
FROM dicom_groups
""")
FAILED = sa.text("""
SELECT min(destination), count(*) FROM deliveries
WHERE state = 'Failed' AND NOT discarded AND destination <> '' GROUP BY lower(destination)
""")
SUCCEEDED = sa.text("""
SELECT lower(destination), max(ended) FROM deliveries
WHERE state = 'Succeeded' AND destination <> '' GROUP BY lower(destination)
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A destination, or a name that deliveries wait for and that is none (`is_known` False).

    breaker         state of its circuit breaker, as the exporter said last. trouble: the kind of its last failure; ""
                    for none.
    oldest          UTC: since when the oldest waits. last_success: when a delivery succeeded last, as long as records
                    are kept.
    """

    name: str
    is_known: bool = True
    paused: bool = False
    breaker: BreakerState = BreakerState.CLOSED
    trouble: str = ""
    waiting: int = 0
    under_way: int = 0
    failed: int = 0
    oldest: datetime | None = None
    last_success: datetime | None = None

    @property
    def works(self) -> bool:
        """Whether its circuit breaker is closed."""
        return self.breaker is BreakerState.CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The DICOM side now.

    address         of the listener. aetitles: those that take instances. sources: how many may send.
    associations    that are open now. groups: of instances that are not jobs yet; failed_groups: that cannot be.
    last_instance   UTC: when the last one came. unused_blocks: Prefect blocks that make nothing, with the reason.
    """

    address: str
    aetitles: tuple[str, ...]
    sources: int
    associations: int
    groups: int
    failed_groups: int
    last_instance: datetime | None
    targets: tuple[Target, ...]
    unused_blocks: Mapping[str, str]


def traffic(settings: Settings, engine: sa.Engine) -> Traffic:
    """As the tables and the loops' signs of life have it. Raises ServiceError."""
    heard = read_all(Places.of(settings).heartbeats)
    with statements(engine) as connection:
        groups, failed_groups, last_instance = connection.execute(RECEIVED).one()
    return Traffic(
        address=f"{settings.host}:{settings.dicom_port}",
        aetitles=tuple(row.ae_title for row in dicom_config.list_aetitles(engine) if not row.draining),
        sources=len(dicom_config.list_sources(engine)),
        associations=associations(heard),
        groups=groups,
        failed_groups=failed_groups,
        last_instance=last_instance,
        targets=tuple(targets(engine, heard)),
        unused_blocks=unused_blocks(heard),
    )


def targets(engine: sa.Engine, heard: Sequence[Beat]) -> list[Target]:
    """Every destination, and what deliveries wait or failed for without one. Raises ServiceError."""
    with statements(engine) as connection:
        failed = {str(name): int(count) for name, count in connection.execute(FAILED)}
        succeeded = {str(row[0]): row[1] for row in connection.execute(SUCCEEDED)}
    rows = {row.name.casefold(): row for row in dicom_config.list_destinations(engine)}
    facts = {beat.name: beat.facts for beat in heard}
    waiting = {queue.destination.casefold(): queue for queue in queues(engine) if queue.destination}
    names = {key: row.name for key, row in rows.items()}
    names |= {key: queue.destination for key, queue in waiting.items() if key not in names}
    names |= {name.casefold(): name for name in failed if name.casefold() not in names}
    failures = {name.casefold(): count for name, count in failed.items()}
    found = []
    for key, name in names.items():
        row, queue, told = rows.get(key), waiting.get(key), facts.get(destination_beat(name), {})
        found.append(
            Target(
                name=name,
                is_known=row is not None or is_output(name),
                paused=row is not None and row.paused,
                breaker=BreakerState(told.get("breaker", BreakerState.CLOSED)),
                trouble=str(told.get("last_error", "")),
                waiting=queue.pending if queue else 0,
                under_way=queue.in_progress if queue else 0,
                failed=failures.get(key, 0),
                oldest=queue.oldest if queue else None,
                last_success=succeeded.get(key),
            )
        )
    return found
