"""An ordinary HTTP program that knows nothing of Longshore. What it does with a job stands in the job's payload.

payload: {"gate": name of the ledger's gate to wait at, "call": [path, body or null] on the sidecar's API, its answer is the result, "sleep": seconds, "answer": {attempt or "*": status}, "result": any, "echo": true,
"misbehave": {delivery: garbage | hang | close | huge | redirect | die}, "refuse": {delivery: status}, "big": bytes of a result}
"""

import http.client
import json
import os
import signal
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

POD = os.environ.get("HOSTNAME", "")
alive = True
local = threading.local()


def ledger(**entry):
    """Written before the handler goes on: an entry that isn't in the ledger didn't happen."""
    entry.update(pod=POD, at=time.time())
    body = json.dumps(entry)
    for _ in range(100):
        try:
            if getattr(local, "connection", None) is None:
                local.connection = http.client.HTTPConnection("ledger", 8080, timeout=5)
            local.connection.request("POST", "/", body)
            local.connection.getresponse().read()
            return
        except OSError:
            local.connection = None
            time.sleep(0.05)
    raise RuntimeError("no ledger")


def wait_at(gate):
    while True:
        connection = http.client.HTTPConnection("ledger", 8080, timeout=20)
        connection.request("GET", "/gates/" + gate)
        if connection.getresponse().status == 204:
            return


def call(path, body):
    """Two lines are all that an app needs to enqueue a job: POST the payload to /v1/queues/<queue>/jobs/<type>."""
    token = {"Authorization": "Bearer " + open(os.environ["LONGSHORE_TOKEN_FILE"]).read()}
    data = None if body is None else json.dumps(body).encode()
    if data:
        token["Content-Type"] = "application/json"
    return json.load(urllib.request.urlopen(urllib.request.Request(os.environ["LONGSHORE_URL"] + path, data, token)))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200 if alive else 500, b"")

    def do_POST(self):
        global alive
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        job = {
            "id": self.headers["Job-Id"],
            "type": self.headers["Job-Type"],
            "attempt": int(self.headers["Job-Attempt"]),
            "delivery": int(self.headers.get("Job-Delivery", 0)),
        }
        payload = json.loads(body or b"{}") or {}
        if not isinstance(payload, dict):
            payload = {"value": payload}
        ledger(event="start", payload=payload.get("note"), **job)
        if payload.get("unhealthy"):
            alive = False
        if payload.get("gate"):
            wait_at(payload["gate"])
        time.sleep(payload.get("sleep", 0))
        kind = payload.get("misbehave", {}).get(str(job["delivery"]))
        if kind:
            return self.misbehave(kind)
        refused = payload.get("refuse", {}).get(str(job["delivery"]))
        if refused:
            return self.answer(refused, b"as told")
        answers = payload.get("answer", {})
        status = answers.get(str(job["attempt"]), answers.get("*", 200))
        if payload.get("big"):
            payload["result"] = "x" * payload["big"]
        if payload.get("call"):
            payload["result"] = call(*payload["call"])
        result = payload if payload.get("echo") else payload.get("result", {"done": job["type"]})
        ledger(event="end", status=status, **job)
        self.answer(status, json.dumps(result).encode() if status < 300 else b"as told")

    def misbehave(self, kind):
        self.close_connection = True
        if kind == "garbage":
            self.wfile.write(b"\x00\xff this is no HTTP \r\n\r\n" * 3)
        elif kind == "hang":
            time.sleep(60)
        elif kind == "huge":
            self.send_response(200)
            self.send_header("Content-Length", str(100 << 20))
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"x" * (1 << 20))
            except OSError:
                pass
        elif kind == "redirect":
            self.send_response(302)
            self.send_header("Location", "http://ledger:8080/")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "die":
            os._exit(1)

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def stop(*_):
    ledger(event="sigterm", id="", type="", attempt=0)
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
ledger(event="boot", id="", type="", attempt=0)
ThreadingHTTPServer.request_queue_size = 512
ThreadingHTTPServer(("", 8080), Handler).serve_forever()
