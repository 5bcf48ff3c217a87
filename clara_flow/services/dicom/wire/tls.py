"""TLS for DICOM: the BCP 195 profiles of PS3.15 Annex B.9 to B.12: TLS 1.2 and newer, forward secrecy, AEAD ciphers."""

from __future__ import annotations

import ssl
from pathlib import Path

from clara_flow.errors import SettingsError

# PS3.15 B.10.1 and BCP 195 (RFC 9325 section 4.2); those of TLS 1.3 are all good and always on.
CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
    "DHE-RSA-AES256-GCM-SHA384:DHE-RSA-AES128-GCM-SHA256"
)


def server_context(certificate: Path | None, key: Path | None, authorities: Path | None) -> ssl.SSLContext:
    """How the listener speaks TLS. Raises SettingsError.

    authorities     whose certificates peers must show; None: peers show none.
    """
    if certificate is None or key is None:
        raise SettingsError(
            "dicom_tls_port needs a certificate and its key: set dicom_tls_certificate and dicom_tls_key."
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(certificate, key)
        if authorities is not None:
            context.load_verify_locations(authorities)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"the certificate, key or authorities of DICOM over TLS cannot be used: {error}. "
            "See dicom_tls_certificate, dicom_tls_key and dicom_tls_authorities."
        ) from error
    return context
