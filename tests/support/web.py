"""A web server of a folder, in a thread: with ranges of bytes, without, or failing halfway."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Plain(SimpleHTTPRequestHandler):
    """As `python -m http.server`: whole files, whatever was asked for."""

    def log_message(self, *_):
        pass


class Ranges(Plain):
    """As the servers of buckets."""

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        part = content[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(self.sent(part))

    def sent(self, part):
        return part


class CutShort(Ranges):
    """Sends less than it has said of everything but headers."""

    def sent(self, part):
        return part[: len(part) // 2] if len(part) > 1000 else part


@contextlib.contextmanager
def serving(folder: Path, handler=Ranges) -> Iterator[str]:
    """Give the URL of a folder."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
