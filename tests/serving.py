"""A real server in a thread of the test, with a real process that segments, and a small model."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from ellipses import write_ellipse_dataset
from kidseg.serve.listening import _listening, configured
from kidseg.serve.policy import Limits, Serving
from kidseg.serve.service import Service, open_service
from kidseg.train import Setup, train

SETTINGS = (
    "view.size=32",
    "unet.size=32",
    "unet.features=4",
    "precision=fp32",
    "segment.epochs=2",
    "segment.min_epochs=0",
    "segment.steps=3",
    "segment.batch_size=6",
    "segment.optimizer.name=adam",
    "segment.optimizer.learning_rate=0.01",
)


def make_model(root: Path, patients: int = 3) -> Path:
    """Train a small model on ellipses, in `root / "data"`."""
    write_ellipse_dataset(root / "data", patients)
    train(root / "data", root / "run", Setup(method="plain", overrides=SETTINGS), device="cpu")
    return root / "run" / "model.safetensors"


def scan_of(root: Path, number: int = 0) -> Path:
    return root / "data" / "imagesTr" / f"ellipse_{number:03d}_0000.nii.gz"


@dataclass
class Running:
    """A server that runs, and a client of it."""

    service: Service
    client: httpx.Client
    url: str

    @property
    def worker(self) -> int:
        """Process id of what segments."""
        until(lambda: self.service.dispatcher._worker is not None)
        found = self.service.dispatcher._worker
        assert found is not None and found.process.pid is not None
        return found.process.pid

    def upload(self, scan: Path, **query: Any) -> dict[str, Any]:
        with scan.open("rb") as file:
            answer = self.client.post("/api/v1/jobs", params=query, files={"file": file})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def job(self, id_: str) -> dict[str, Any]:
        return self.client.get(f"/api/v1/jobs/{id_}").json()

    def ended(self, id_: str) -> dict[str, Any]:
        until(lambda: self.job(id_)["state"] in ("done", "failed", "cancelled"))
        return self.job(id_)

    def events(self) -> list[str]:
        """What the audit log has."""
        return [line.split('"event": "')[1].split('"')[0] for line in self.log.splitlines()]

    @property
    def log(self) -> str:
        return self.service.audit.path.read_text()

    @contextmanager
    def held(self) -> Iterator[int]:
        """The process that segments stands still within this block."""
        pid = self.worker
        os.kill(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            if self.service.dispatcher._worker and self.worker == pid:
                os.kill(pid, signal.SIGCONT)


@contextmanager
def running(
    folder: Path, model: Path, *, limits: Limits | None = None, token: str = "", **more: Any
) -> Iterator[Running]:
    tokens = {token: "me"} if token else {}
    serving = Serving(
        model=model,
        folder=folder,
        device="cpu",
        port=0,
        tokens=more.pop("tokens", tokens),
        limits=limits or Limits(),
        **more,
    )
    with _listening(serving) as door, open_service(serving) as service:
        server = uvicorn.Server(configured(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
                yield Running(service, client, url)
        finally:
            server.should_exit = True
            thread.join()


class Direct:
    """A client that calls the application itself, without a network."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def answered() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            base = "http://127.0.0.1:8000"
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, **more)

        return asyncio.run(answered())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)


def until(happened: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def zipped(files: dict[str, bytes]) -> bytes:
    import zipfile

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()
