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


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A destination, or a name that deliveries wait for and that is none (`is_known` False).

    works       its circuit breaker is closed. trouble: the kind of its last failure; "" for none.
    oldest      UTC: since when the oldest waits.
    """

    name: str
    is_known: bool = True
    paused: bool = False
    works: bool = True
    trouble: str = ""
    waiting: int = 0
    under_way: int = 0
    failed: int = 0
    oldest: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The DICOM side now.

    address         of the listener. aetitles: those that take instances. sources: how many may send.
    associations    that are open now. groups: of instances that are not jobs yet; failed_groups: that cannot be.
    last_instance   UTC: when the last one came.
    """

    address: str
    aetitles: tuple[str, ...]
    sources: int
    associations: int
    groups: int
    failed_groups: int
    last_instance: datetime | None
    targets: tuple[Target, ...]


def traffic(settings: Settings, engine: sa.Engine) -> Traffic:
    """As the tables and the loops' signs of life have it. Raises ServiceError."""
    heard = read_all(Places.of(settings).heartbeats)
    with statements(engine) as connection:
        groups, failed_groups, last_instance = connection.execute(RECEIVED).one()
        failed = {str(name): int(count) for name, count in connection.execute(FAILED)}
    return Traffic(
        address=f"{settings.host}:{settings.dicom_port}",
        aetitles=tuple(row.ae_title for row in dicom_config.list_aetitles(engine) if not row.draining),
        sources=len(dicom_config.list_sources(engine)),
        associations=associations(heard),
        groups=groups,
        failed_groups=failed_groups,
        last_instance=last_instance,
        targets=tuple(_targets(engine, heard, failed)),
    )


def _targets(engine: sa.Engine, heard: Sequence[Beat], failed: Mapping[str, int]) -> list[Target]:
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
                works=told.get("breaker", BreakerState.CLOSED) == BreakerState.CLOSED,
                trouble=str(told.get("last_error", "")),
                waiting=queue.pending if queue else 0,
                under_way=queue.in_progress if queue else 0,
                failed=failures.get(key, 0),
                oldest=queue.oldest if queue else None,
            )
        )
    return found
