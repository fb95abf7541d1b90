"""The web page in which people correct what models propose: it runs on this machine, and asks nobody for an account."""

from __future__ import annotations

import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence

from vesalius.curate.project import Atlas
from vesalius.curate.records import READERS
from vesalius.errors import ConfigError, VesaliusError, nearest


def review(
    atlas: str,
    *,
    who: str = "",
    reader: str = "first",
    host: str = "127.0.0.1",
    port: int = 8765,
    token: bool = True,
    show_tags: Sequence[str] = (),
    browser: bool = True,
    download: bool = False,
) -> int:
    """Open an annotation project's queue in the browser: look, correct, judge; every judgement is saved at once.

    Args:
        atlas: the project's folder.
        who: your name or initials; the page asks otherwise.
        reader: first or second; the second does not see the first one's mask before having judged.
        host: address to listen on; this machine only, by default.
        port: to listen on; 0 takes a free one.
        token: ask for the token in the link; without it on this machine only.
        show_tags: DICOM tags that the page may show: patient, study, series, sop, frame_of_reference, body_part.
        browser: open the link in the browser.
        download: fetch the viewer NiiVue through npm, if it is not there yet.
    """
    try:
        import uvicorn

        from vesalius.review import security, server, viewer
    except ModuleNotFoundError as error:
        raise ConfigError(f"the page needs {error.name}", remedy='pip install "vesalius[review]"') from error
    if reader not in READERS:
        raise ConfigError(f"no reader is {reader!r}", remedy=nearest(reader, READERS))
    project = Atlas.open(atlas)
    secret = security.new_token() if token else None
    security.check_exposure(host, secret)
    if download:
        print(f"viewer: {viewer.install()}")
    elif not viewer.installed():
        print(viewer.MISSING, file=sys.stderr)
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    app = server.make_app(project, token=secret, host=host, port=port, who=who, reader=reader, show_tags=show_tags)
    shown = f"[{host}]" if ":" in host else host
    link = f"http://{shown}:{port}/" + (f"?token={secret}" if secret else "")
    items = project.queue()
    waiting = sum(item.state == "open" for item in items)
    print(f"{waiting} of {len(items)} structures wait for a first look")
    if not items:
        print("the queue is empty; fill it with: vesalius curate atlas step ATLAS")
    print(f"open {link}\nstop with Ctrl-C", flush=True)
    if not security.is_loopback(host):
        print("other machines can reach it, and nothing is encrypted; rather use ssh -L", file=sys.stderr)
    elif browser:
        threading.Timer(0.5, webbrowser.open, [link]).start()
    # No log of requests: addresses are not personal, but a log that nobody asked for is one more thing to protect.
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        VesaliusError: the address is taken, or is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise VesaliusError(
            f"cannot listen on {host} port {port} ({reason})", remedy="choose another --port"
        ) from error
