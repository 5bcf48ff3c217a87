"""A sender for a destination, as its row says."""

from __future__ import annotations

import ssl

from clara_flow.records.dicom_models import Destination, DestinationKind
from clara_flow.services.dicom.credentials import authorization, secret_of
from clara_flow.services.dicom.export.dimse import DimseSender
from clara_flow.services.dicom.export.proposals import Node
from clara_flow.services.dicom.export.sender import Deidentify, DestinationFailed, Sender, Unusable
from clara_flow.services.dicom.export.stow import StowSender
from clara_flow.services.dicom.wire.tls import CIPHERS
from clara_flow.settings import Settings


def sender_for(destination: Destination, settings: Settings, deidentify: Deidentify | None) -> Sender:
    """For one thread. A destination that cannot be tried, because of its settings, gets one that fails."""
    try:
        if destination.kind is DestinationKind.DIMSE:
            node = node_of(destination, settings)
            return DimseSender(node, profile=destination.deidentify, deidentify=deidentify)
        return StowSender(
            destination.url,
            timeout_s=settings.dicom_export_timeout_s,
            verify=client_context(settings) if destination.url.startswith("https:") else False,
            login=lambda hold: authorization(secret_of(settings, destination.credentials)),
            profile=destination.deidentify,
            deidentify=deidentify,
        )
    except DestinationFailed as failure:
        return Unusable(failure)


def node_of(destination: Destination, settings: Settings) -> Node:
    """Whom to call for a DIMSE destination. Raises DestinationFailed when our certificates cannot be used."""
    return Node(
        host=destination.host,
        port=destination.port or 0,
        called=destination.ae_title,
        calling=destination.calling_ae or settings.dicom_scu_ae_title,
        timeout_s=settings.dicom_export_timeout_s,
        tls=client_context(settings) if destination.tls else None,
    )


def client_context(settings: Settings) -> ssl.SSLContext:
    """How we speak TLS (PS3.15 Annex B, BCP 195): a peer's certificate must name its host, and come from an authority.

    Those are the settings', else the system's. Our own certificate is shown where there is one.
    """
    try:
        context = ssl.create_default_context(cafile=settings.dicom_tls_authorities)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        if settings.dicom_tls_certificate is not None:
            context.load_cert_chain(settings.dicom_tls_certificate, settings.dicom_tls_key)
    except (OSError, ssl.SSLError) as error:
        raise DestinationFailed(
            "credentials", f"our certificate, key or authorities cannot be used: {error.strerror or 'unreadable'}"
        ) from None
    return context
