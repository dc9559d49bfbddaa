"""Why a network camera does not open: the decoder only says that it does not, so ask the other end once ourselves."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import SplitResult, urlsplit

from edge_demo.source import Timeouts, basic_login

PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}  # RFC 9110 and RFC 7826
ASK_S = 1.0  # a camera that is coming back must not find us busy asking why
PLAY = "check that the camera is on and the address plays in ffplay, or try --source synthetic"
LOGIN = "write it as {}://USER:PASSWORD@HOST/..."
VIDEO = ("multipart/", "video/", "image/", "application/octet-stream", "application/vnd.apple.mpegurl")


def why_closed(url: str, timeouts: Timeouts, spent_s: float) -> tuple[str, str]:
    """Why the stream at `url` did not open, as part of a sentence without credentials, and what to do.

    Args:
        url: http, https, rtsp or rtsps.
        timeouts: Those it was opened with.
        spent_s: How long opening took.
    """
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), parts.hostname or ""
    port = parts.port or PORTS[scheme]
    if spent_s >= 0.9 * timeouts.open_ms / 1000:
        return f"no stream within {timeouts.open_ms / 1000:g} s", PLAY
    try:
        with socket.create_connection((host, port), ASK_S) as connection:
            if scheme == "http":
                return _http(connection, parts)
            if scheme == "rtsp":
                return _rtsp(connection, parts, port)
    except socket.gaierror:
        return f"there is no host {host}", "check the address"
    except ConnectionRefusedError:
        return f"nobody listens at port {port}", "check that the camera is on, and the port"
    except TimeoutError:
        return f"no answer within {ASK_S:g} s", "check the address, and that the camera is in this network"
    except (OSError, http.client.HTTPException) as error:
        return getattr(error, "strerror", None) or "it hangs up", PLAY
    return "", PLAY


def _http(connection: socket.socket, parts: SplitResult) -> tuple[str, str]:
    client = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ASK_S)
    client.sock = connection
    login = basic_login(parts.netloc)
    client.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=login)
    answer = client.getresponse()
    if answer.status in (401, 403):
        return f"it answers {answer.status}: user and password are needed, or are wrong", LOGIN.format("http")
    if answer.status >= 400:
        return f"it answers {answer.status} {answer.reason}", "check the path in a browser"
    kind = answer.headers.get_content_type()
    if not kind.startswith(VIDEO):
        return f"it sends {kind}, which is no video", "look at the address in a browser"
    return "", PLAY


def _rtsp(connection: socket.socket, parts: SplitResult, port: int) -> tuple[str, str]:
    """Source: RFC 2326, sections 6.1 and 7.1."""
    connection.settimeout(ASK_S)
    asked = f"rtsp://{parts.hostname}:{port}{parts.path}" + (f"?{parts.query}" if parts.query else "")
    connection.sendall(f"DESCRIBE {asked} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n".encode())
    words = connection.recv(512).decode(errors="replace").partition("\r\n")[0].split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith("RTSP/"):
        return "it speaks no RTSP", "is it an http address?"
    if words[1] in ("401", "403"):  # an answer to our question without a password; the decoder asked with it
        return f"it answers {words[1]}: user and password are needed, or are wrong", LOGIN.format("rtsp")
    return ("", PLAY) if words[1] == "200" else (f"it answers {' '.join(words[1:])}", "check the path")
