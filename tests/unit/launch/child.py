"""A process to supervise: says where its own child is, then answers /health.

Arguments: port, file to write the grandchild's process id to, then any of `stubborn` (survives SIGINT and SIGTERM, as
does the grandchild, and makes FILE.interrupted at the first SIGINT), `dies` (prints a reason and ends with status 1), `mute` (never answers).
"""

from __future__ import annotations

import http.server
import signal
import subprocess
import sys
import time
from pathlib import Path

port, grandchild_file, *modes = sys.argv[1:]
if "dies" in modes:
    sys.exit("the reason why")
if "stubborn" in modes:
    # Ignored signals stay ignored across exec.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
with open(grandchild_file, "w", encoding="ascii") as stream:
    stream.write(str(grandchild.pid))
if "stubborn" in modes:
    signal.signal(signal.SIGINT, lambda *_: Path(f"{grandchild_file}.interrupted").touch())
if "mute" in modes:
    time.sleep(600)


class Health(http.server.BaseHTTPRequestHandler):
    """200 with an empty list of engines, as a KV node has before its engine registers."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"engines": []}')

    def log_message(self, format: str, *arguments: object) -> None:
        pass


try:
    http.server.HTTPServer(("127.0.0.1", int(port)), Health).serve_forever()
except KeyboardInterrupt:
    print("ended in order", flush=True)
