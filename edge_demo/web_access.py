"""Who may use the web view: addresses, tokens, Host and Origin rules, and the headers every answer carries.

The rules follow the threats of a server on a device in a local network: a page elsewhere that makes a browser send
requests here (CSRF), a host name that is re-bound to a local address, and a neighbour on the same network.
Source: OWASP Cheat Sheets "Cross-Site Request Forgery Prevention" and "Content Security Policy".
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edge_demo.errors import InputError

DEFAULT_ADDRESS = "127.0.0.1:8080"
MIN_TOKEN = 16  # characters
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Access:
    """Where to listen and whom to let in. `token` None: anyone who can reach a loopback address."""

    host: str
    port: int
    token: str | None
    names: frozenset[str]
    """Host names a request may be meant for; IP addresses are judged by `meant_for_us`."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @property
    def cookie(self) -> str:
        """Name of the cookie that holds the token; browsers share cookies between the ports of a host."""
        return f"edge_token_{self.port}"


def parse_access(address: str, token_file: Path | None) -> Access:
    """The rules for `HOST:PORT`.

    Raises:
        InputError: not an address, or a token file that cannot be read or holds too short a token.
    """
    host, port = parse_address(address)
    token = read_token(token_file) if token_file else None if is_loopback(host) else secrets.token_urlsafe(24)
    own = socket.gethostname().lower()
    names = LOOPBACK_NAMES if is_loopback(host) else LOOPBACK_NAMES | {own, f"{own}.local", host.lower()}
    return Access(host, port, token, frozenset(names))


def parse_address(address: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT`; InputError when it is not."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", address)
    if not match or int(match[3]) > 65535:
        raise InputError(f"--web {address}: not HOST:PORT", f"type: --web {DEFAULT_ADDRESS}")
    return match[1] or match[2], int(match[3])


def is_loopback(host: str) -> bool:
    """Whether the host is this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(path: Path) -> str:
    """The token a file holds, without surrounding white space."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--web-token-file {path}: cannot be read ({error})", "check the path") from None
    if len(token) < MIN_TOKEN or not re.fullmatch(r"[!-~]+", token) or set(token) & set('",;\\'):
        raise InputError(
            f"--web-token-file {path}: needs one token of {MIN_TOKEN} or more letters, digits or signs",
            "make one: python3 -c 'import secrets; print(secrets.token_urlsafe())' > FILE",
        )
    return token


def meant_for_us(access: Access, host_header: str) -> bool:
    """Whether the Host header names this server: a foreign name means it was re-bound to our address.

    The port is not compared, so that a forwarded port works. An IP address cannot be re-bound.
    """
    try:
        name = (urlsplit(f"//{host_header}").hostname or "").lower()
    except ValueError:
        return False
    if name in access.names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return not access.loopback


def same_origin(host_header: str, origin: str | None) -> bool:
    """Whether a page of ours sent the request. Browsers name the page's origin on every POST; other clients do not."""
    return origin is None or (bool(host_header) and origin in {f"http://{host_header}", f"https://{host_header}"})


def token_matches(access: Access, given: str | None) -> bool:
    """Compared in constant time, so that the answer's delay tells nothing about the token."""
    if access.token is None:
        return True
    return given is not None and secrets.compare_digest(given.encode(), access.token.encode())


def security_headers(page: str) -> Mapping[str, str]:
    """Headers for every answer. The page's own script and style are allowed by their digest, nothing else is."""

    def digests(tag: str) -> str:
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.S)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" for body in bodies
        )

    policy = (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
