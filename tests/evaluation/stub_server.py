"""A small server on loopback that speaks as much of OpenAI's protocol as a test needs, and fails when it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any], int], tuple[int, dict[str, Any]]]
"""Gets the body of a request and its number (from 0); gives the status and the body of the reply. Status 0 cuts the
connection."""


def completion(text: str) -> tuple[int, dict[str, Any]]:
    return 200, {
        "id": "1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "text": text}],
    }


class StubServer:
    """Runs while it is a context; `bodies` keeps what was asked, `headers` how, and `at_once` how many were under way
    together."""

    def __init__(self, answer: Answer, models: dict[str, int | None] | None = None, port: int = 0) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self._running = 0
        lock, stub = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def reply(self, status: int, body: dict[str, Any]) -> None:
                if status == 0:
                    self.close_connection = True
                    return
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                stub.paths.append(self.path)
                listed = [
                    {
                        "id": name,
                        "object": "model",
                        "created": 1,
                        "owned_by": "me",
                        **({"max_model_len": length} if length else {}),
                    }
                    for name, length in (models or {}).items()
                ]
                self.reply(
                    *((404, {"detail": "Not Found"}) if models is None else (200, {"object": "list", "data": listed}))
                )

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    number = len(stub.bodies)
                    stub.bodies.append(body)
                    stub.headers.append({name.lower(): value for name, value in self.headers.items()})
                    stub.paths.append(self.path)
                    stub._running += 1
                    stub.at_once = max(stub.at_once, stub._running)
                try:
                    self.reply(*answer(body, number))
                finally:
                    with lock:
                        stub._running -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
