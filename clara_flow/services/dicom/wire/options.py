"""What a listener process is told when it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.wire.command_set import Status
from clara_flow.services.dicom.wire.commitment import CommitmentCheck, Reference
from clara_flow.services.dicom.wire.contexts import PLAIN_SYNTAXES
from clara_flow.settings import Settings


def nothing_known(references: Sequence[Reference]) -> Sequence[int]:
    """A commitment check that knows of no instance but those of the association itself."""
    return [Status.NO_SUCH_INSTANCE] * len(references)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """What a listener process needs. Durations in seconds, sizes in bytes unless said otherwise.

    number              of this process, for its name in heartbeats.
    port, tls_port      0: any that is free.
    check               whether instances that other associations stored are safe.
    """

    number: int
    host: str
    port: int
    spool: Path
    config: Path
    heartbeats: Path
    maximum_associations: int = 25
    verification: bool = True
    verification_syntaxes: tuple[str, ...] = PLAIN_SYNTAXES
    reject_unknown_sources: bool = True
    maximum_pdu_bytes: int = 131_072
    request_timeout_s: float = 10
    idle_timeout_s: float = 60
    fsync: bool = True
    watermark_percent: int = 85
    reserve_mib: int = 4_768
    tls_port: int | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_authorities: Path | None = None
    check: CommitmentCheck = field(default=nothing_known)

    @classmethod
    def of(
        cls, settings: Settings, places: Places, *, number: int, check: CommitmentCheck = nothing_known
    ) -> ListenerOptions:
        """As the settings say."""
        return cls(
            number=number,
            host=settings.host,
            port=settings.dicom_port,
            spool=places.spool,
            config=places.listener_config,
            heartbeats=places.heartbeats,
            maximum_associations=settings.dicom_maximum_associations,
            verification=settings.dicom_verification,
            verification_syntaxes=settings.dicom_verification_transfer_syntaxes,
            reject_unknown_sources=settings.dicom_reject_unknown_sources,
            maximum_pdu_bytes=settings.dicom_maximum_pdu_bytes,
            request_timeout_s=settings.dicom_request_timeout_s,
            idle_timeout_s=settings.dicom_idle_timeout_s,
            fsync=settings.dicom_fsync,
            watermark_percent=settings.dicom_watermark_percent,
            reserve_mib=settings.dicom_reserve_mib,
            tls_port=settings.dicom_tls_port,
            tls_certificate=settings.dicom_tls_certificate,
            tls_key=settings.dicom_tls_key,
            tls_authorities=settings.dicom_tls_authorities,
            check=check,
        )
