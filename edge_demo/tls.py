"""Whether an encrypted camera is the one it says it is: OpenCV's FFmpeg opens any certificate, and never its name."""

from __future__ import annotations

import os
import socket
import ssl
from urllib.parse import SplitResult

from edge_demo.errors import InputError

PORTS = {"https": 443, "rtsps": 322}  # RFC 9110 and RFC 7826
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


def ca_file() -> str:
    """The file with the authorities this machine trusts: SSL_CERT_FILE, else the system's; empty when there is none."""
    paths = ssl.get_default_verify_paths()
    for path in (os.environ.get("SSL_CERT_FILE"), paths.cafile, paths.openssl_cafile, *BUNDLES):
        if path and os.path.isfile(path):  # noqa: PTH113 - a string goes to FFmpeg as it is
            return path
    return ""


def context(*, verify: bool) -> ssl.SSLContext:
    """TLS settings of a client that checks chain and host name, or (named opt-out) nothing."""
    made = ssl.create_default_context(cafile=ca_file() or None)
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def check(parts: SplitResult, name: str, timeout_s: float) -> None:
    """Shake hands once and let Python judge the certificate: its chain, its dates and the name in it.

    FFmpeg with `tls_verify` checks the chain only (measured: a certificate for another host is accepted).

    Args:
        parts: The camera's URL, scheme https or rtsps.
        name: The URL as people may see it.
        timeout_s: For connecting and for the handshake.

    Raises:
        InputError: nobody answers, or the certificate is not accepted.
    """
    host = parts.hostname or ""
    port = parts.port or PORTS[parts.scheme.lower()]
    try:
        with (
            socket.create_connection((host, port), timeout_s) as plain,
            context(verify=True).wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        hint = "set SSL_CERT_FILE to the file of the authority that signed it, or add --insecure-tls"
        raise InputError(f"{name}: its certificate is not accepted ({error.verify_message})", hint) from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise InputError(f"{name}: does not open ({reason})", "check that the camera is on and speaks TLS") from error
