"""A collector that takes whatever comes and keeps none of it; `python -m benchmarks.collector`."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COLLECTING = "collecting on port "


class _Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for each request would be most of what it does."""


def main() -> None:
    """Serve until the process is ended."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    print(f"{COLLECTING}{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
