"""`llm-influence serve`: a JSON API and a page over one model."""

from __future__ import annotations

import ipaddress
import logging
from pathlib import Path
from typing import Annotated

import typer

from llm_influence.errors import ConfigError
from llm_influence.utils import require

LOOPBACK = "127.0.0.1"


def serve(
    model: Annotated[Path, typer.Option(help="Folder of a run or of a model.")],
    log: Annotated[
        Path | None, typer.Option(help="Event table of the users. Default: that of the run.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="LLM_INFLUENCE_TOKEN",
            help="Requests must carry it. Needed for any address but this machine's own.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="Attribution method.")] = "group_shapley",
    seconds: Annotated[float, typer.Option(min=0.1, help="Longest time for an answer.")] = 30.0,
) -> None:
    """Answer questions about one model over HTTP, and show the page "what if".

    The page is at the address that is printed, the description of the API at /docs.
    """
    if not _is_local(host) and not token:
        raise ConfigError(
            f"the server would listen on {host} without a token",
            where="--host",
            expected="a token for any address but this machine's own",
            fix="add --token, or set LLM_INFLUENCE_TOKEN",
        )
    uvicorn = require("uvicorn", extra="serve", purpose="llm-influence serve")
    require("fastapi", extra="serve", purpose="llm-influence serve")
    from llm_influence.run import Run
    from llm_influence.serve.app import Limits, make_app
    from llm_influence.serve.service import Service

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run = Run.open(model)
    users = run.split.log if log is None else run.open_log(str(log))
    app = make_app(Service(run.model, users, method), Limits(seconds, token))
    typer.echo(f"http://{host}:{port}   (API: http://{host}:{port}/docs; stop: Ctrl-C)")
    uvicorn.run(app, host=host, port=port, log_level="warning")


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
