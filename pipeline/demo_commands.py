"""Commands around the demo: which cameras there are, and the demo as a service of the system."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from edge_demo.errors import InputError
from pipeline.options import Debug

HEARTBEAT_S = 60
UNIT = """\
# Made by: pipeline service. Put it into /etc/systemd/system/{name}.service, then type:
#   sudo systemctl daemon-reload && sudo systemctl enable --now {name}
[Unit]
Description=train-to-edge demo of {bundle_name}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
Restart=on-failure
RestartSec=5
# Wrong usage, a refused bundle and a missed limit are not cured by another start.
RestartPreventExitStatus=2 3
WatchdogSec={heartbeat}
TimeoutStartSec=120
TimeoutStopSec=15
KillSignal=SIGTERM
DynamicUser=yes
SupplementaryGroups=video
StateDirectory={name}
WorkingDirectory=%S/{name}
# DynamicUser implies PrivateTmp, RemoveIPC and NoNewPrivileges; the rest takes away what a camera demo never needs.
ProtectSystem=strict
ProtectHome=read-only
PrivateMounts=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
DevicePolicy=closed
DeviceAllow=char-video4linux rw
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
CapabilityBoundingSet=
SystemCallArchitectures=native
SystemCallFilter=@system-service
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def service(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle, .edge file, or run folder.")],
    source: Annotated[list[str] | None, typer.Option(help="As of demo; repeatable.")] = None,
    name: Annotated[str, typer.Option(help="Of the service.")] = "train-to-edge",
    web: Annotated[str, typer.Option(metavar="HOST:PORT", help="Of the web view.")] = "127.0.0.1:8080",
    web_token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Token that viewers need.")] = None,
    debug: Debug = False,
) -> None:
    """Print a systemd unit that runs the demo at every start of this machine and restarts it when it hangs."""
    from edge_demo.bundle import open_bundle
    from edge_demo.web_access import parse_access
    from pipeline.bundles import bundle_of

    parse_access(web, web_token_file)
    path = bundle_of(bundle)
    manifest = open_bundle(path).manifest
    typer.echo(unit(path.resolve(), manifest.name, source or ["0"], name, web, web_token_file), nl=False)


def unit(
    bundle: Path, bundle_name: str, sources: list[str], name: str, web: str, web_token_file: Path | None = None
) -> str:
    """The text of the unit file.

    Raises:
        InputError: a name systemd does not take, or a source with a password: unit files are readable by everyone.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}", name):
        raise InputError(f"--name {name}: not a name for a service", "use letters, digits, - and _")
    for source in sources:
        if "@" in source and "://" in source:
            raise InputError(
                "--source: a unit file is readable by everyone on the machine, and this address holds a password",
                "write the address without it and allow the device by its IP in the camera",
            )
    words = [str(Path(sys.executable).with_name("pipeline")), "demo", str(bundle)]
    for source in sources:
        words += ["--source", source]
    words += ["--wait", "--show", "none", "--web", web]
    if web_token_file is not None:
        words += ["--web-token-file", str(web_token_file.resolve())]
    return UNIT.format(
        name=name,
        bundle_name=re.sub(r"[^\w .-]", "", bundle_name),
        command=" ".join(quoted(word) for word in words),
        heartbeat=HEARTBEAT_S,
    )


def quoted(word: str) -> str:
    """One argument of ExecStart. Source: systemd.service(5), "Command lines", and systemd.unit(5), "Specifiers"."""
    if any(ord(character) < 32 for character in word):
        raise InputError(f"{word!r}: cannot stand in a unit file", "use a path without control characters")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[^\w@%+=:,./-]", word) else escaped


def print_cameras(asked: bool) -> None:
    """`--list-cameras`: number, name and what each grants, one line each on stdout."""
    if not asked:
        return
    from edge_demo.cameras import CameraRequest, list_cameras
    from edge_demo.source import USUAL
    from edge_demo.video import VideoSource

    def open_camera(request: CameraRequest) -> str:
        source = VideoSource(request, "camera", f"camera {request.index}", USUAL)
        try:
            return source.open()
        finally:
            source.close()

    rows = list_cameras(open_camera)
    for number, name, told in rows:
        typer.echo(f"{number}\t{name}\t{told}")
    if not rows:
        typer.echo("no camera here; try --source synthetic", err=True)
    raise typer.Exit()
