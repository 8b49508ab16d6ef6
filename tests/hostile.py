"""A client that means harm: it sends what servers stumble over, from six threads.

python tests/hostile.py PORT KEY SECONDS    prints the statuses of the answers to each kind of request, as JSON
python tests/hostile.py MODEL [ROUNDS]      serves a checkpoint, and prints how long a polite client waits beside
                                            the hostile one over how long it waits alone, round by round
"""

import http.client
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

PACE = 75
"""Requests of one thread in a second, at most."""
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
    for k in itertools.count():
        began = time.monotonic()
        if began > end:
            return
        yield k
        time.sleep(max(0, began + 1 / PACE - time.monotonic()))


def serve(model: str) -> tuple[subprocess.Popen[str], int]:
    """(a server of the model in a process of its own, its port)"""
    words = [sys.executable, "-m", "expunge", "serve", model, "--port", "0", "--host", "127.0.0.1"]
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "EXPUNGE_API_KEY": "key"})
    assert server.stderr is not None
    found = (re.search(r"http://127.0.0.1:(\d+)/v1", line) for line in iter(server.stderr.readline, ""))
    return server, next(int(match[1]) for match in found if match)


def median_seconds(port: int, times: int = 9) -> float:
    """How long a polite client waits for a short answer."""
    taken = []
    for _ in range(times):
        began = time.monotonic()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps({**CHAT, "max_tokens": 12}).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer key"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def measure(model: str, rounds: int) -> None:
    server, port = serve(model)
    ratios = []
    try:
        median_seconds(port)
        for _ in range(rounds):
            alone = median_seconds(port)
            words = [sys.executable, __file__, str(port), "key", "3600"]
            with subprocess.Popen(words, stdout=subprocess.DEVNULL) as hostile:
                time.sleep(1)
                ratios.append(median_seconds(port) / alone)
                hostile.kill()
            time.sleep(2)  # the server notices that its client has left
            print(f"{ratios[-1]:.2f} times as long as alone ({alone:.3f} s)", flush=True)
    finally:
        server.kill()
    print(f"median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    if sys.argv[1].isdecimal():
        main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
    else:
        measure(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5)
