"""A loopback server of OpenAI's chat completions, scripted by a function: for every test that needs an endpoint.

def script(request: dict) -> str | Answer: ...
with ChatServer(script) as server:
    config = ChatConfig(base_url=server.url, model="m")
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["drop", "truncated", "drip", "hang", "drip_headers", "cut_json"]


@dataclass
class Answer:
    """What the server does with one request.

    Attributes:
        text: the reply's content; None is sent as null.
        finish_reason: as sent.
        usage: as sent; None = prompt and completion tokens by the number of words, False = no usage at all.
        status: of HTTP; from 400 on `body` (default: an error in OpenAI's form, with `text`) is sent.
        body: sent as it is instead of a completion.
        headers: further ones.
        latency_s: waited before anything is sent.
        fault: `drop` hangs up at once, `truncated` in the middle of the body, `cut_json` sends half of the JSON as if it were
            all, `drip` a byte every 20 ms, `drip_headers` never ends the headers, `hang` sends nothing.
    """

    text: str | None = ""
    finish_reason: str | None = "stop"
    usage: dict[str, Any] | bool | None = None
    status: int = 200
    body: bytes | str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    latency_s: float = 0.0
    fault: Fault | None = None


Script = Callable[[dict[str, Any]], "str | Answer"]


class ChatServer(ThreadingHTTPServer):
    """Serves `script` on a free port; a context manager.

    Attributes:
        requests: bodies in order of arrival.
        headers: their headers, with names in lower case.
        peak: most requests that were being answered at the same time.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peak = 0
        self.release = threading.Event()
        self.lock = threading.Lock()
        self._active = 0
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """The base_url."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.shutdown()
        self._thread.join(5)
        self.server_close()

    def enter(self, step: int) -> None:
        """Count who is being answered."""
        with self.lock:
            self._active += step
            self.peak = max(self.peak, self._active)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement
    server: ChatServer  # type: ignore[assignment]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = json.loads(body)
        self.server.enter(1)
        try:
            with self.server.lock:
                self.server.requests.append(request)
                self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
                made = self.server.script(request)
            answer = Answer(made) if isinstance(made, str) else made
            if answer.latency_s:
                self.server.release.wait(answer.latency_s)
        finally:
            self.server.enter(-1)  # before the client can have the answer and send another request
        self._send(answer, _body(answer, request))

    def _send(self, answer: Answer, body: bytes) -> None:
        fault = answer.fault
        if fault == "hang":
            self.server.release.wait(60)
        if fault in ("hang", "drop"):
            self._hang_up()
            return
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        if fault == "drip_headers":
            self.flush_headers()
            while not self.server.release.wait(0.02):
                self.wfile.write(b"X-More: 1\r\n")
            self._hang_up()
            return
        if fault == "cut_json":
            body = body[: len(body) // 2]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self._hang_up()
        elif fault == "drip":
            for place in range(len(body)):
                if self.server.release.wait(0.02):
                    break
                self.wfile.write(body[place : place + 1])
        else:
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _body(answer: Answer, request: dict[str, Any]) -> bytes:
    if answer.body is not None:
        return answer.body.encode() if isinstance(answer.body, str) else answer.body
    if answer.status >= 400:
        return json.dumps(
            {"error": {"message": answer.text, "type": "error", "code": answer.status}}
        ).encode()
    usage = answer.usage
    if usage is None:
        sent = sum(len(str(message["content"]).split()) for message in request["messages"])
        usage = {"prompt_tokens": sent, "completion_tokens": len((answer.text or "").split())}
    message = {"role": "assistant", "content": answer.text}
    made = {
        "id": "1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
    }
    if usage is not False:
        made["usage"] = usage
    return json.dumps(made).encode()
