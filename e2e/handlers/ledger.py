"""Keeps what the handlers did: POST a line, GET all of them. The scenarios judge by this and by nothing else.

It also keeps gates at which handlers wait: GET /gates/<name> answers when somebody has POSTed there, 408 after 10 s."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lines = []
gates = {}
lock = threading.Lock()


def gate(path):
    with lock:
        return gates.setdefault(path, threading.Event())


class Ledger(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        line = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/gates/"):
            gate(self.path).set()
            return self.answer(204, b"")
        with lock:
            lines.append(line)
        self.answer(204, b"")

    def do_GET(self):
        if self.path.startswith("/gates/"):
            return self.answer(204 if gate(self.path).wait(10) else 408, b"")
        with lock:
            body = b"\n".join(lines)
        self.answer(200, body)

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer.request_queue_size = 512
ThreadingHTTPServer(("", 8080), Ledger).serve_forever()
