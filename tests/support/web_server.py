"""A real web server that answers as a test says and notes what it took."""

import contextlib
import http.server
import json
import socket
import threading

WAIT_S = 20.0


class WebServer:
    """Answers each POST as its plan says, then with 200; notes what it took."""

    def __init__(self, port, plan=(), *, tls=None):
        self.port, self.plan, self.tls = port, list(plan), tls
        self.requests, self.changed = [], threading.Condition()
        self.released = threading.Event()
        self.connections = []

    def __enter__(self):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                server.connections.append(self.connection)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                action = server.plan.pop(0) if server.plan else 200
                if action == "stall":
                    server.released.wait(WAIT_S)
                    return self.connection.close()
                if action == "hang up":
                    self.close_connection = True
                    return None
                self.send_response(action)
                if action == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")
                if action == 200:
                    server.note(self.path, dict(self.headers), body)
                return None

            def log_message(self, *_):
                """Quiet."""

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None
        if self.tls is not None:
            self._http.socket = self.tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(WAIT_S)
        for connection in self.connections:  # as the end of a process closes them
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def note(self, *request):
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()

    def rows(self):
        return [json.loads(body)["row"] for _, _, body in self.requests]

    def wait_for(self, row):
        with self.changed:
            assert self.changed.wait_for(lambda: row in self.rows(), WAIT_S), self.rows()[-3:]
