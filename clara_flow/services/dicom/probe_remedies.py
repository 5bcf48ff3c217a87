"""What to do about a destination that cannot be reached, in words."""

from __future__ import annotations

from clara_flow.services.dicom.export.refusals import REASONS

SEE_ITS_LOG = "Look at the destination's log; it knows why."
CHECK_SPELLING = "Check the spelling, or give its IP address."
OUR_CERTIFICATE = (
    "It wants a certificate of ours that is valid and of an authority that it knows: see dicom_tls_certificate and "
    "dicom_tls_key."
)
PHRASES = {  # in what is said -> what to do; the first that fits
    REASONS[1, 3]: "Register our AE title {calling!r} and this machine's address at the destination.",
    REASONS[1, 7]: "Its AE title is not {called!r}; case counts. Look it up there, and add the destination anew "
    "with it.",
    REASONS[3, 1]: "It has too much to do. Try again, and lower --concurrency if it stays so.",
    REASONS[3, 2]: "It has too many associations. Try again, and lower --concurrency if it stays so.",
    "certificate has expired": "Its certificate has run out: it needs a new one. Or is the clock here wrong?",
    "certificate is not valid for": "Its certificate names another host: add the destination with the host that it "
    "names, or have a certificate made that names this one.",
    "certificate is not trusted": "Its certificate is of an authority that we do not know: put the certificate of that "
    "authority into the file dicom_tls_authorities.",
    "alert handshake failure": "It speaks none of our versions and ciphers of TLS (1.2 and newer, BCP 195), or it "
    "wants a certificate of ours: see dicom_tls_certificate and dicom_tls_key.",
    "alert protocol version": "It speaks none of our versions of TLS (1.2 and newer).",
    "alert certificate": OUR_CERTIFICATE,  # required, expired, revoked, unknown
    "alert bad certificate": OUR_CERTIFICATE,
    "alert unknown ca": OUR_CERTIFICATE,
    "TLS with the destination failed": "It speaks no TLS on this port, it seems. Is the port right?",
    "within TLS, without a reason": OUR_CERTIFICATE,
}
FAILURES = {  # kinds of DestinationFailed -> what to do
    "rejected": SEE_ITS_LOG + " Is our AE title {calling!r} registered there, with this machine's address?",
    "aborted": "Something answers there that is no DICOM peer, or that wants TLS (--tls). " + SEE_ITS_LOG,
    "lost": "Does it want TLS (--tls), or not? Is it DICOM that listens on this port? " + SEE_ITS_LOG,
    "silent": "Something takes connections there and says nothing. Does it want TLS (--tls)? Does it hang?",
    "protocol": "What listens there does not speak DICOM as it should. Is the port right?",
}


def remedy_for(said: str, kind: str = "", *, called: str = "", calling: str = "") -> str:
    """What to do about a failure.

    said    why, as DestinationFailed says it. kind: its kind. called, calling: AE titles.
    """
    text = next((PHRASES[phrase] for phrase in PHRASES if phrase in said), FAILURES.get(kind, SEE_ITS_LOG))
    return text.format(called=called, calling=calling)
