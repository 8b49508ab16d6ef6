"""A client that means harm: `python hostile.py PORT KEY SECONDS` sends what servers stumble over, from six threads.

Prints how many requests of each kind were sent and the statuses of the answers, as JSON.
"""

import http.client
import json
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

MOST = 300
"""Requests of one thread."""
CHAT = {"messages": [{"role": "user", "content": "Where was person 1 born?"}], "temperature": 0}
BODIES: dict[str, Any] = {
    "big": {"messages": [{"role": "user", "content": "why " * 2**18}]},
    "beams": {**CHAT, "num_beams": 500},
    "stops": {**CHAT, "stop": [f"stop {k}" for k in range(10_000)]},
    "nested": "[" * 10_000,
    "json": '{"messages": [',
    "long": {**CHAT, "max_tokens": 90},
    "past the context": {**CHAT, "max_tokens": 10**9},
}


def main(port: int, key: str, seconds: float) -> None:
    end, sent = time.monotonic() + seconds, defaultdict[str, Counter[str]](Counter)
    kinds = [("big", "beams", "nested"), ("stops", "json", "past the context"), ("long",), ("long",)]
    jobs: list[Any] = [*(partial(posts, each) for each in kinds), leaves, dawdles]
    threads = [threading.Thread(target=job, args=(port, key, end, sent), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 30)
    assert set(sent) == {*BODIES, "leaves", "dawdles"}, set(sent)
    print(json.dumps(sent))


def posts(kinds: tuple[str, ...], port: int, key: str, end: float, sent: Any) -> None:
    for k in _while(end):
        kind = kinds[k % len(kinds)]
        body = BODIES[kind] if isinstance(BODIES[kind], str) else json.dumps(BODIES[kind])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            sent[kind][str(connection.getresponse().status)] += 1
        except OSError as error:
            sent[kind][type(error).__name__] += 1
        finally:
            connection.close()


def leaves(port: int, key: str, end: float, sent: Any) -> None:
    """Ask for a long stream and go away after the first bytes."""
    body = json.dumps({**BODIES["long"], "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in _while(end):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(head.encode() + body)
            sent["leaves"][connection.recv(12).decode()[-3:]] += 1


def dawdles(port: int, key: str, end: float, sent: Any) -> None:
    """Many connections that never finish the head of a request, or its body."""
    heads = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: local", b"GET /health HTTP/1.1\r\nX-Long: ")
    held: list[socket.socket] = []
    for k in _while(end):
        with suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
            held[-1].sendall(heads[k % 2])
            sent["dawdles"]["open"] += 1
        time.sleep(0.02)
    for connection in held:
        connection.close()


def _while(end: float) -> Iterator[int]:
    for k in range(MOST):
        if time.monotonic() > end:
            return
        yield k


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
