"""What a client may take up: bytes, time, connections; and that others are answered all the while."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

from steprl.serving import Limits, Piece, make_app
from steprl.serving.connections import connection_limit
from tests.serving.live import running
from tests.serving.test_malformed import (
    COMPLETION,
    completion,
    served_with,
)

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def served():
    return served_with()


# Bytes


def asgi(app, headers, messages, delay=0.0, path=COMPLETION):
    """Status of the answer to ASGI messages, how many of them were received, and its headers."""
    waiting, sent = iter(messages), []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), *headers],
    }  # fmt: skip
    received = 0

    async def receive():
        nonlocal received
        await asyncio.sleep(delay)
        if (message := next(waiting, None)) is None:
            await asyncio.sleep(3600)
        received += 1
        return message

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    headers = dict(sent[0]["headers"])
    return sent[0]["status"], received, headers


def part(size, more=True):
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


SMALL = Limits(body=1000, pause_seconds=0.05, body_seconds=0.2)


@pytest.mark.parametrize(
    ("stated", "messages", "status", "received"),
    [
        (b"1001", [part(1001, False)], 413, 0),  # refused before a byte is read
        (b"9" * 30, [part(1)], 413, 0),
        (None, [part(600), part(600), part(600)], 413, 2),  # chunked: no length is stated
        (None, [part(1000, False)], 400, 1),  # as large as may be, and no JSON
        (b"10", [part(5)], 408, 1),
        (None, [], 408, 0),
        (b"10", [part(5), {"type": "http.disconnect"}], 499, 2),
    ],
)
def test_bodies_are_limited_while_they_are_read(served, stated, messages, status, received):
    headers = [(b"content-length", stated)] if stated else []
    found = asgi(make_app(served, limits=SMALL), headers, messages)
    assert found[:2] == (status, received)
    if status in (408, 413):
        assert found[2][b"connection"].lower() == b"close"


def test_a_body_that_trickles_is_given_up(served):
    """Never a pause, and yet too slow."""
    trickle = (part(1) for _ in range(1000))
    limits = Limits(pause_seconds=60, body_seconds=0.2)
    status, received, _ = asgi(make_app(served, limits=limits), [], trickle, delay=0.01)
    assert status == 408 and 0 < received < 1000


def test_bodies_together_are_limited(served):
    limits = Limits(bodies=1000)
    status, received, headers = asgi(make_app(served, limits=limits), [], [part(600), part(600)])
    assert (status, received, headers[b"retry-after"]) == (503, 2, b"1")


# Connections


@contextlib.contextmanager
def connected(address, number, sent=b""):
    port = int(address.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            for _ in range(number)
        ]
        for one in sockets:
            one.settimeout(30)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", port))
            with contextlib.suppress(ConnectionError):  # it had to make room already
                one.sendall(sent)
        yield sockets


def ask(address, **settings):
    return httpx.post(f"{address}{COMPLETION}", json=completion(), timeout=30, **settings)


def closed(one):
    """Whether the server has ended a connection; waits for it."""
    try:
        while one.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return True


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(HEAD[:30], id="half a line", marks=pytest.mark.full),
        pytest.param(HEAD, id="half a head", marks=pytest.mark.full),
        pytest.param(HEAD + b"a: " + b"b" * 9999, id="a long head", marks=pytest.mark.full),
        pytest.param(HEAD + b"content-length: 100\r\n\r\n{", id="half a body"),
    ],
)
@pytest.mark.parametrize("number", [100, pytest.param(300, marks=pytest.mark.full)])
def test_connections_that_do_nothing_keep_nobody_waiting(served, number, sent):
    limits = Limits(connections=number + 20, header_seconds=60)
    with running(served, limits) as address, connected(address, number, sent):
        assert ask(address).status_code == 200


def test_those_idle_for_longest_make_room(served):
    limits = Limits(connections=4, header_seconds=60)
    with running(served, limits) as address:
        with connected(address, 4) as idle, connected(address, 20, HEAD):
            assert ask(address).status_code == 200
            assert all(map(closed, idle))


@pytest.mark.parametrize("sent", [b"", HEAD], ids=["nothing", "half a head"])
def test_headers_have_to_come_in_time(served, sent):
    limits = Limits(header_seconds=0.2)
    with running(served, limits) as address, connected(address, 2, sent) as sockets:
        assert all(map(closed, sockets))
        assert ask(address).status_code == 200


def test_headers_that_trickle_are_given_up(served):
    with running(served, Limits(header_seconds=0.3)) as address, connected(address, 1) as [one]:
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                one.sendall(b"G")
                time.sleep(0.01)


def test_a_body_that_never_comes_is_answered_and_ended(served):
    limits = Limits(pause_seconds=0.2)
    sent = HEAD + b"content-length: 100\r\n\r\n{"
    with running(served, limits) as address, connected(address, 1, sent) as [one]:
        answer = one.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert closed(one)


NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,  # the hello of TLS
    b"\0" * 5000,
    b"\r\n" * 1000,
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    b"GET /v1/models/%ff%ed%a0%80 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: \xff\xfe\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    HEAD + b"content-length: -1\r\n\r\n{}",
    HEAD + b"content-length: x\r\n\r\n{}",
    HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    HEAD + b"content-length: " + b"9" * 30 + b"\r\n\r\n{}",
    HEAD + b"transfer-encoding: gzip\r\n\r\n{}",
    HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
    HEAD + b"content-length: 2\r\n\r\n{}{}{}{}",
]  # fmt: skip


def test_what_is_no_http_ends_its_own_connection_only(served):
    limits = Limits(header_seconds=0.3, pause_seconds=0.3)
    with running(served, limits) as address, contextlib.ExitStack() as stack:
        ones = [stack.enter_context(connected(address, 1, sent))[0] for sent in NO_HTTP]
        for one, sent in zip(ones, NO_HTTP, strict=True):
            with contextlib.suppress(ConnectionResetError):
                answer = one.recv(65536)
                assert not answer or answer.split(b" ")[1][:1] == b"4", (sent[:40], answer[:80])
            assert closed(one)
        assert ask(address).status_code == 200


def test_a_connection_is_used_again(served):
    with running(served, Limits(header_seconds=60)) as address, httpx.Client() as client:
        for _ in range(3):
            answer = client.post(f"{address}{COMPLETION}", json=completion())
            assert answer.status_code == 200
        port = answer.extensions["network_stream"].get_extra_info("client_addr")
        again = client.get(f"{address}/health")
        assert again.extensions["network_stream"].get_extra_info("client_addr") == port


class Gushing:
    """Replies with much text, and remembers when it was ended."""

    context_length = 10**9

    def __init__(self):
        self.closed = threading.Event()

    def reply(self, prompt, settings):
        if settings.max_tokens == 1:
            yield Piece((72,), (0.0,), (0.0,), ((),), "length")
            return
        try:
            while True:
                yield Piece((72,) * 400, (0.0,) * 400, (0.0,) * 400, ((),) * 400)
        finally:
            self.closed.set()


def test_one_that_does_not_read_its_answer_does_not_hold_the_model(served):
    engine = Gushing()
    body = json.dumps(completion(stream=True, max_tokens=10**8)).encode()
    sent = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    limits = Limits(write_seconds=0.3)
    with running(served._replace(engine=engine), limits, send_buffer=4096) as address:
        with connected(address, 1, sent):
            assert engine.closed.wait(60)
            one = httpx.post(f"{address}{COMPLETION}", json=completion(max_tokens=1), timeout=30)
            assert one.status_code == 200


def test_no_more_requests_wait_than_may(served):
    started, go = threading.Event(), threading.Event()

    class Held:
        context_length = 512

        def reply(self, prompt, settings):
            started.set()
            go.wait(30)
            yield Piece((72,), (0.0,), (0.0,), ((),), "length")

    with running(served._replace(engine=Held()), Limits(requests=1)) as address:
        first = threading.Thread(target=ask, args=[address])
        first.start()
        assert started.wait(30)
        refused = ask(address)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert httpx.get(f"{address}/health").status_code == 200
        go.set()
        first.join()
        assert ask(address).status_code == 200


@pytest.mark.parametrize(
    ("files", "asked", "most"), [(20_000, 1000, 1000), (256, 1000, 128), (64, 10, 10), (64, 99, 32)]
)
def test_connections_leave_file_descriptors_for_others(monkeypatch, files, asked, most):
    monkeypatch.setattr("resource.getrlimit", lambda which: (files, files))
    assert connection_limit(Limits(connections=asked)) == most
