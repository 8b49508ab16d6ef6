"""`expunge serve`: any of our checkpoints behind an OpenAI-compatible endpoint.

`asked` holds what a client may ask, `generation` answers it, `app` is the protocol around both.
"""

import errno
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.errors import UserError
from expunge.secrets import remember
from expunge.serve.asked import Limits


def application(
    model: str,
    name: str,
    *,
    device: str = "auto",
    api_key: str | None = None,
    hosts: Sequence[str] = (),
    limits: Limits | None = None,
) -> Any:
    """The ASGI application that serves the checkpoint `model` under `name`, loaded once, before the first request.

    `api_key`: what clients must send as their bearer token; without it everybody is answered. `hosts`: names in the
    `Host` header that are answered besides those of this machine's loopback.

    Raises `UserError` for a checkpoint that can't be loaded and where the extra `expunge[serve]` is missing.
    """
    build = _app().build
    from expunge.modeling.loading import load

    served, tokenizer = load(model)
    served.to(_device(device))
    remember({"api_key": api_key})
    return build(served, tokenizer, name, api_key=api_key, hosts=hosts, limits=limits or Limits())


def serve(
    model: str,
    *,
    host: str,
    port: int,
    device: str = "auto",
    api_key: str | None = None,
    hosts: Sequence[str] = (),
    timeout: float = Limits.timeout,
) -> None:
    """Serve until interrupted or terminated; requests under way then have five seconds to end.

    Raises `UserError`, before the model is loaded, for an address that can't be listened on and limits out of range.
    """
    if not timeout > 0:
        raise UserError(f"serve: --timeout must be above 0 seconds, got {timeout:g}.")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise UserError("serve: the API key must be printable ASCII without spaces around it; give another one.")
    app = _app()
    listening = _listen(host, port)
    try:
        name = Path(model).resolve().name if Path(model).exists() else model
        own_names = [f"[{host}]" if ":" in host else host]
        if host in ("0.0.0.0", "::", ""):
            own_names = [socket.gethostname(), socket.getfqdn()]
        served = application(
            model, name, device=device, api_key=api_key, hosts=[*own_names, *hosts], limits=Limits(timeout=timeout)
        )
        app.serve_on(listening, served, name, open_to_all=api_key is None)
    finally:
        for each in listening:
            each.close()


def _app() -> Any:
    """The module that needs the extra."""
    try:
        import uvicorn  # noqa: F401

        from expunge.serve import app
    except ImportError as error:
        raise UserError(f"serve: {error.name or error} is missing; pip install 'expunge[serve]'.") from error
    return app


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of `host`; nobody else gets the port while the model is loaded."""
    if not 0 <= port < 2**16:
        raise UserError(f"serve: --port must be from 0 to 65535, got {port}.")
    sockets: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in addresses):
            if sockets and port == 0:
                break  # another address would get another port
            try:
                listening = socket.create_server(address[:2], family=family, backlog=128)
                # Connections inherit it; without it the second packet of an answer waits for the first's receipt.
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets.append(listening)
            except OSError as error:
                # `localhost` may name an address that this machine does not have, such as ::1.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "this machine has no such address")
    except (OSError, UnicodeError) as error:
        for each in sockets:
            each.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"serve: {host} port {port} can't be listened on ({reason[0].lower()}{reason[1:]}); give another --port or "
            "--host."
        ) from None
    return sockets


def _device(name: str) -> Any:
    import torch

    if name != "auto":
        return torch.device(name)
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
