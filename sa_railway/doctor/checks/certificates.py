"""Why the certificate of the server is not accepted: the root, the time, or the name.

The driver has refused it, and libpq says no more than that. The certificate is looked at once more
with Python's TLS, which says why.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

from sa_railway.config.drivers import libpq_parameters
from sa_railway.doctor.case import Case
from sa_railway.doctor.checks.network import ask_for_tls
from sa_railway.doctor.findings import Finding, Kind, Severity

_WITHOUT = "sslmode=require encrypts without verifying the server's identity."

EXPIRED = Kind(
    "certificate-expired",
    Severity.ERROR,
    "The certificate of the server expired on <date>",
    "sslmode=<mode> verifies it. Railway renews its own only when the database service is "
    "restarted or deployed, and then with another root.",
    "Renew it on the server; on Railway, deploy the database service again, and take its new root "
    f"for sslrootcert. Until then, {_WITHOUT}",
    (
        "SSL error: certificate verify failed",
        "certificate verify failed: certificate has expired",
    ),
)
NOT_YET = Kind(
    "certificate-not-yet-valid",
    Severity.ERROR,
    "The certificate of the server is valid only from <date> on",
    "Here it is earlier: the clock of this machine is slow, or that of the machine was fast where "
    "the certificate was made.",
    "Set the clock right, or make the certificate once more.",
    (
        "SSL error: certificate verify failed",
        "certificate verify failed: certificate is not yet valid",
    ),
)
ROOT = Kind(
    "certificate-root",
    Severity.ERROR,
    "The certificate of the server was not signed by <root>: <reason>",
    "sslmode=<mode> accepts only what that root has signed. Railway's database signs its "
    "certificate with a private root, and makes another one when it renews it.",
    "Give the root that has signed it with sslrootcert; on Railway that is "
    f"/var/lib/postgresql/data/certs/root.crt of the database service. Without it, {_WITHOUT}",
    (
        "SSL error: certificate verify failed",
        "certificate verify failed: self-signed certificate",
        "certificate verify failed: unable to get local issuer certificate",
    ),
)
ROOT_FILE = Kind(
    "certificate-root-file",
    Severity.ERROR,
    "There is no root certificate in <root>",
    "sslmode=<mode> verifies the certificate of the server by a root that this machine must have.",
    "Put the root that has signed it there, or give the file's path with sslrootcert; "
    "sslrootcert=system takes the public ones, which sign no certificate of Railway's databases. "
    f"Without one, {_WITHOUT}",
    (
        'root certificate file "<root>" does not exist',
        'could not read root certificate file "<root>"',
    ),
)
HOST = Kind(
    "certificate-host",
    Severity.ERROR,
    "The certificate of the server is for <names>, and the URL has the host <host>",
    "sslmode=verify-full compares the two. Railway's is for localhost, by whatever name it is "
    "reached.",
    "Use a host that it is for, or have one made for <host>. If the root signs nothing but this "
    "server, sslmode=verify-ca is as good: it verifies the root, not the name.",
    (
        'does not match host name "<host>"',
        "certificate verify failed: Hostname mismatch",
        "certificate verify failed: IP address mismatch",
    ),
)
CERTIFICATE = Kind(
    "certificate",
    Severity.ERROR,
    "A certificate is not accepted: <message>",
    "It is that of the server, of a client, or its key.",
    "Compare sslmode, sslrootcert, sslcert and sslkey in the URL with what the message says.",
    (
        "SSL error: certificate verify failed",
        "SSL error: tlsv1 alert unknown ca",
        'private key file "<path>" has group or world access',
        "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED]",
    ),
)

_AT_ANY_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME
_HAS_EXPIRED, _IS_NOT_YET_VALID = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED and its opposite
_SYSTEM = "system"


def explain_certificate(case: Case, message: str) -> Finding:
    """Say why the driver has not accepted a certificate."""
    default = Path.home() / ".postgresql" / "root.crt"
    root = libpq_parameters(case.url).get("sslrootcert")
    root = root or os.environ.get("PGSSLROOTCERT") or str(default)
    try:
        finding = _look(case, root)
    except (OSError, ValueError):  # the server is gone, or the file is not what is looked for
        finding = None
    return finding or CERTIFICATE.found(message=message)


def _look(case: Case, root: str) -> Finding | None:
    if root != _SYSTEM and not _holds_certificates(root):
        return ROOT_FILE.found(root=root, mode=case.sslmode)
    try:
        certificate = _verify(case, root)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _HAS_EXPIRED:
            return EXPIRED.found(date=_date(case, root, "notAfter"), mode=case.sslmode)
        if error.verify_code == _IS_NOT_YET_VALID:
            return NOT_YET.found(date=_date(case, root, "notBefore"), mode=case.sslmode)
        shown = "a root of this system" if root == _SYSTEM else root
        return ROOT.found(root=shown, reason=error.verify_message, mode=case.sslmode)
    try:
        _verify(case, root, for_host=True)
    except ssl.SSLCertVerificationError:
        return HOST.found(names=_names(certificate), host=case.url.host)
    return None


def _holds_certificates(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ssl.SSLError):
        return False
    return True


def _verify(case: Case, root: str, *, for_host: bool = False, flags: int = 0) -> dict[str, Any]:
    """Return the certificate of the server, if it is signed by *root*.

    Raises:
        ssl.SSLCertVerificationError: it is not, or not valid now, or not for the host.
    """
    if case.address is None:
        raise OSError("there is no address to connect to")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = for_host
    context.verify_flags |= flags
    if root == _SYSTEM:
        context.load_default_certs()
    else:
        context.load_verify_locations(root)
    with ask_for_tls(case.address, case.timeout) as connection:
        connection.recv(1)
        with context.wrap_socket(connection, server_hostname=case.address.host) as encrypted:
            return encrypted.getpeercert() or {}


def _date(case: Case, root: str, field: str) -> str:
    return str(_verify(case, root, flags=_AT_ANY_TIME)[field])


def _names(certificate: dict[str, Any]) -> str:
    names = [value for _, value in certificate.get("subjectAltName", ())]
    subject = [value for pairs in certificate.get("subject", ()) for _, value in pairs]
    return ", ".join(names or subject[-1:]) or "no name at all"
