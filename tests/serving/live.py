"""A server on a free port of this machine."""

import contextlib
import socket
import threading
import time

import pytest

from steprl.serving import make_app, server_config

uvicorn = pytest.importorskip("uvicorn")


@contextlib.contextmanager
def running(served, limits=None, send_buffer=None, **settings):
    """Serves, and gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if send_buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        app = make_app(served, limits=limits, **settings)
        config = server_config(app, limits, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
