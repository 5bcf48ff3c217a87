"""What tenants may hold of the pool. The dispatcher hears of every change on `nodes.CHANNEL`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import col

from clara_flow.errors import InputError
from clara_flow.records.database import statements
from clara_flow.records.models import Quota
from clara_flow.records.nodes import CHANNEL


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """One row; see `models.Quota`."""

    tenant: str
    weight: float
    nominal: dict[str, int]
    hard: dict[str, int]
    updated: datetime


SET = sa.text("""
WITH quota AS (
    INSERT INTO quotas (tenant, weight, nominal, hard, updated) VALUES (:tenant, :weight, :nominal, :hard, now())
    ON CONFLICT (tenant) DO UPDATE SET weight = excluded.weight, nominal = excluded.nominal, hard = excluded.hard,
        updated = excluded.updated
    RETURNING tenant
)
SELECT pg_notify(:channel, json_build_object('quota', tenant)::text) FROM quota
""").bindparams(sa.bindparam("nominal", type_=JSONB), sa.bindparam("hard", type_=JSONB), channel=CHANNEL)

DELETE = sa.text("""
WITH quota AS (DELETE FROM quotas WHERE tenant = :tenant RETURNING tenant)
SELECT pg_notify(:channel, json_build_object('quota', tenant)::text) FROM quota
""").bindparams(channel=CHANNEL)


def list_quotas(engine: sa.Engine) -> list[QuotaRow]:
    """All quotas, by tenant."""
    columns = (col(getattr(Quota, name)) for name in QuotaRow.__slots__)
    with statements(engine) as connection:
        return [QuotaRow(*row) for row in connection.execute(sa.select(*columns).order_by(col(Quota.tenant)))]


def set_quota(
    engine: sa.Engine,
    tenant: str,
    *,
    weight: float = 1.0,
    nominal: Mapping[str, int] | None = None,
    hard: Mapping[str, int] | None = None,
) -> None:
    """Give a tenant this quota instead of the one it may have.

    weight          its share relative to other tenants', above 0.
    nominal, hard   amounts by resource name: its own, and what it never exceeds. One that is missing is unlimited.

    Raises InputError when a number cannot be used.
    """
    if not 0 < weight < float("inf"):
        raise InputError(f"the weight of a quota is a number above 0, not {weight:g}", tenant=tenant)
    negative = sorted(name for limits in (nominal, hard) for name, amount in (limits or {}).items() if amount < 0)
    if negative:
        raise InputError(f"the quota of {tenant!r} is negative: {', '.join(negative)}", tenant=tenant)
    facts = {"tenant": tenant, "weight": weight, "nominal": dict(nominal or {}), "hard": dict(hard or {})}
    with statements(engine) as connection:
        connection.execute(SET, facts)


def delete_quota(engine: sa.Engine, tenant: str) -> bool:
    """Take a tenant's quota away; returns whether it had one."""
    with statements(engine) as connection:
        return bool(connection.execute(DELETE, {"tenant": tenant}).all())
