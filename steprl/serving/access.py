"""Who may use the server: a token, or else this machine alone and no web page."""

import hmac
import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steprl.serving.fields import ApiError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    name = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def check_exposure(host: str, token: str | None) -> None:
    """Lets a server listen on a host, or says why not.

    Raises:
        ValueError: others reach the host, and there is no token; or HTTP cannot carry the token.
    """
    if not token and not is_loopback(host):
        raise ValueError(
            f"--host {host} can be reached by others: give a secret with --token-file or "
            "$STEPRL_SERVE_TOKEN, or stay on 127.0.0.1"
        )
    if token and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise ValueError("the token: printable ASCII characters only, no blank around them")


def read_token(shown: str | None, file: str | None, environment: Mapping[str, str]) -> str | None:
    """The secret that clients have to give; None for none.

    Args:
        shown: what stood on the command line, which is no place for it.
        file: one that holds the secret and nothing else.
        environment: variables; STEPRL_SERVE_TOKEN counts where there is no file.

    Raises:
        ValueError: it was on the command line, or the file holds none.
        OSError: the file cannot be read.
    """
    if shown is not None:
        raise ValueError(
            "--token: everyone on this machine can read a command line (`ps`), and the shell keeps "
            "it; put the secret into $STEPRL_SERVE_TOKEN, or into a file for --token-file"
        )
    if file is None:
        return environment.get("STEPRL_SERVE_TOKEN") or None
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise OSError(f"--token-file {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--token-file {file}: it holds no text") from error
    if not token:
        raise ValueError(f"--token-file {file}: it is empty; write a secret into it")
    return token


class Guard:
    """Stands before every request: the token, or else the name by which this machine was asked."""

    def __init__(self, app: Any, token: str | None, refuse: Callable[[ApiError], Any]):
        self.app, self.token, self.refuse = app, token, refuse

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            check_access(headers, self.token, scope["method"])
        except ApiError as error:
            await self.refuse(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def check_access(headers: dict[bytes, bytes], token: str | None, method: str = "GET") -> None:
    """Lets a request in, or says why not.

    Web pages must not use a server of this machine: one that needs no token answers to names of this
    machine only (a name of theirs may point here), to no page of elsewhere, and takes JSON only, which
    a browser does not send to another site without asking.

    Raises:
        ApiError: 401, 403 or 415.
    """
    if token:
        scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
        correct = hmac.compare_digest(credentials.strip(), token.encode())
        if scheme.lower() != b"bearer" or not correct:
            raise ApiError(
                401,
                "A token is needed: `Authorization: Bearer TOKEN`, the `api_key` of OpenAI's client.",
                "invalid_api_key",
            )
    else:
        name = _host_name(headers.get(b"host", b"").decode("latin-1"))
        origin = headers.get(b"origin", b"").decode("latin-1").partition("://")[2]
        if not is_loopback(name) or (b"origin" in headers and not is_loopback(_host_name(origin))):
            raise ApiError(
                403,
                "Without a token this server answers to 127.0.0.1 and localhost only, and to no page "
                "of elsewhere.",
                "forbidden_host",
            )
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if method == "POST" and kind != "application/json":
        raise ApiError(415, "The body has to be sent as Content-Type: application/json.")


def _host_name(host: str) -> str:
    """Without its port: "[::1]:80" is "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
