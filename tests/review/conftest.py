"""A project, its page on a free port, and a real browser."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from vesalius.curate.project import Atlas
from vesalius.review import viewer

PROJECTS = importlib.util.spec_from_file_location("projects", Path(__file__).with_name("projects.py"))
assert PROJECTS is not None and PROJECTS.loader is not None
projects = importlib.util.module_from_spec(PROJECTS)
PROJECTS.loader.exec_module(projects)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking", "--no-sandbox")


@dataclass
class Served:
    """A page that is being served."""

    atlas: Atlas
    port: int
    token: str | None

    @property
    def link(self) -> str:
        return f"http://127.0.0.1:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def ask(self, path: str, *, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and content of an answer; the path is sent as it stands, no client tidies it."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token and "cookie" not in given:
            given["cookie"] = f"vesalius-{self.port}={self.token}"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body=body, headers={k: v for k, v in given.items() if v})
            response = connection.getresponse()
            content = response.read()
            self.headers = dict(response.headers)
        finally:
            connection.close()
        if response.headers.get_content_type() == "application/json":
            return response.status, json.loads(content)
        return response.status, content

    def post(self, path: str, value: Any, **headers: str) -> tuple[int, Any]:
        """An answer to JSON, sent as the page does."""
        body = json.dumps(value).encode() if isinstance(value, dict) else value
        given = {"content_type": "application/json", "x_vesalius": "1", **headers}
        return self.ask(path, method="POST", body=body, **given)


@pytest.fixture(scope="session")
def make_project() -> Callable[..., Atlas]:
    """`projects.make_project`."""
    return projects.make_project


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """A small project that tests copy."""
    return projects.make_project(tmp_path_factory.mktemp("made"), cases=1, size=(16, 32, 32))


@pytest.fixture
def project(made: Atlas, tmp_path: Path) -> Atlas:
    """One's own copy of the small project."""
    return Atlas.open(shutil.copytree(made.path, tmp_path / "atlas"))


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., Served]]:
    """A function that serves a project's page until the module's tests end."""
    uvicorn = pytest.importorskip("uvicorn", reason="the page needs the extra vesalius[review]")
    from vesalius.review import _listen, server

    running = []

    def start(atlas: Atlas, *, token: str | None = "secret-of-the-test", **options: Any) -> Served:
        listening = _listen("127.0.0.1", 0)
        port = listening.getsockname()[1]
        app = server.make_app(atlas, token=token, host="127.0.0.1", port=port, **options)
        service = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=service.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        running.append((service, thread))
        while not service.started:
            time.sleep(0.01)
        return Served(atlas, port, token)

    yield start
    for service, thread in running:
        service.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; it draws in software."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (vesalius[dev])")
    path = os.environ.get("VESALIUS_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("no Chromium on this machine (Debian and Ubuntu: apt install chromium)")
    if not viewer.installed():
        pytest.skip(viewer.MISSING)
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()
