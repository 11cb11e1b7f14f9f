"""The command `serve`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from kidseg.cli.options import AsJson, Device, Quiet, option
from kidseg.cli.stopping import stoppable
from kidseg.cli.terminal import print_result, tell_missing_gpu
from kidseg.errors import KidsegError
from kidseg.extras import check_installed

if TYPE_CHECKING:
    from kidseg.serve.policy import Serving

__all__ = ["serve"]

_access = partial(option, rich_help_panel="Access")
_limits = partial(option, rich_help_panel="Limits")
_NEEDED = ("fastapi", "uvicorn", "python_multipart")


def serve(
    folder: Annotated[
        Path, option("--folder", help="For jobs, images, models and the audit log.")
    ] = Path("kidseg-server"),
    model: Annotated[
        str | None,
        option("--model", "-m", help="A model file or run folder; else kidseg's starter."),
    ] = None,
    host: Annotated[str, _access(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, _access(min=0, max=65535, help="0: any that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        _access(help="A line TOKEN or NAME TOKEN for each client; see docs/server.md."),
    ] = None,
    certificate: Annotated[Path | None, _access(help="PEM file, for TLS.")] = None,
    key: Annotated[Path | None, _access(help="PEM file of its key.")] = None,
    proxy: Annotated[
        list[str] | None,
        _access(help="Address of a proxy whose X-Forwarded-For is believed; may be repeated."),
    ] = None,
    upload_mb: Annotated[int, _limits(min=1, help="Largest upload.")] = 4096,
    job_minutes: Annotated[float, _limits(min=0, help="Longest job.")] = 60.0,
    keep_hours: Annotated[
        float, _limits(min=0, help="Remove jobs and results after this time.")
    ] = 24.0,
    disk_gb: Annotated[
        float, _limits(min=0, help="Remove the oldest results beyond this size.")
    ] = 100.0,
    train_option: Annotated[
        list[str] | None,
        option(help="For kidseg train, when clients train: --train-option=--set=K=V"),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Serve a model: REST jobs, the protocol of MONAI Label for 3D Slicer, and a web page.

    Only this machine reaches it, unless --host says otherwise, which requires --token-file.

    Example: kidseg serve --port 8000
    """
    check_installed("the server", _NEEDED, "kidseg[serve]")
    from kidseg.model_file import find_model
    from kidseg.report.templates import check_viewer
    from kidseg.serve.listening import serve
    from kidseg.serve.policy import Limits, Serving, read_tokens

    limits = Limits(
        upload_bytes=upload_mb * 2**20,
        job_s=job_minutes * 60,
        keep_s=keep_hours * 3600,
        disk_bytes=int(disk_gb * 2**30),
    )
    serving = Serving(
        model=find_model(model).absolute(),
        folder=folder,
        device=device,
        host=host,
        port=port,
        tokens={} if token_file is None else read_tokens(token_file),
        certificate=certificate,
        key=key,
        limits=limits,
        proxies=tuple(proxy or ()),
        training=tuple(train_option or ()),
    )

    tell_missing_gpu(device, quiet or as_json)

    def ready(actual: Serving) -> None:
        facts = {
            "address": actual.address,
            "folder": str(folder),
            "model": str(actual.model),
            "token_required": bool(actual.tokens),
        }
        text = f"Serving at {actual.address}; files in {folder}. Stop with Ctrl-C."
        try:
            check_viewer()
        except KidsegError as error:
            text += f"\nReports (html) are not offered: {error}"
        print_result({"serving": facts}, text, as_json, quiet)

    with stoppable(lambda: "Jobs that were waiting or running go on after the next start."):
        serve(serving, ready)
