"""iperf3 as a mover: what plain TCP connections carry, one thread at either end and no payload looked at."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from typing import Any

from benchmarks.transport.movers import process_cpu_s
from benchmarks.transport.wan import Net
from prfaas.bench.nodes import Moved

#: An iperf3 must not outlive a benchmark that is killed; util-linux has the program.
DIE_TOO = ("setpriv", "--pdeathsig", "KILL")
WARM_S = 1
TIMED_S = 3


class Iperf:
    """`streams` connections. iperf3 keeps none between runs, so each move makes its own.

    On loopback a move is the given bytes, with no warming up. On a WAN, where that counts, it is whatever three seconds
    carry after a first second that is left out; the receiver counts what was on its way too, a percent over.
    """

    def __init__(self, streams: int, congestion: str | None = None) -> None:
        self.name = f"iperf3 -P {streams}" + (f" -C {congestion}" if congestion else "")
        self._arguments = ["-P", str(streams), *(["-C", congestion] if congestion else [])]
        self._server: subprocess.Popen[str] | None = None

    def available(self) -> str | None:
        """Whether the programs are there."""
        missing = [program for program in ("iperf3", DIE_TOO[0]) if shutil.which(program) is None]
        return f"{' and '.join(missing)} not installed" if missing else None

    def start(self, net: Net, num_bytes: int, num_pieces: int) -> None:
        """The server, at B."""
        port = _free_port()
        amount = ["-n", str(num_bytes)] if net.name == "loopback" else ["-t", str(TIMED_S), "-O", str(WARM_S)]
        client = ["iperf3", "--client", net.b_address, "--port", str(port), "--json", *amount, *self._arguments]
        self._client = [*net.a_prefix, *DIE_TOO, *client]
        self._server = subprocess.Popen(
            [*net.b_prefix, *DIE_TOO, "iperf3", "--server", "--port", str(port), "--forceflush"],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._until_listening()

    def move(self) -> Moved:
        """One run of the client. Of its CPU time, the part for the bytes that were counted."""
        assert self._server, "start() comes first"
        before_s = process_cpu_s(self._server.pid)
        with tempfile.TemporaryFile("w+") as output:
            client = subprocess.Popen(self._client, stdout=output, start_new_session=True)
            try:
                _, status, usage = os.wait4(client.pid, 0)
                client.returncode = os.waitstatus_to_exitcode(status)
            finally:
                if client.returncode is None:  # interrupted
                    client.kill()
                    client.wait()
            output.seek(0)
            report: dict[str, Any] = json.load(output)
        if "error" in report:
            raise RuntimeError(f"{self.name}: {report['error']}")
        self._until_listening()
        cpu_s = usage.ru_utime + usage.ru_stime + process_cpu_s(self._server.pid) - before_s
        sent = [interval["sum"] for interval in report["intervals"]]
        omitted_bytes = sum(interval["bytes"] for interval in sent if interval["omitted"])
        counted_bytes = sum(interval["bytes"] for interval in sent) - omitted_bytes
        received = report["end"]["sum_received"]
        share = counted_bytes / (counted_bytes + omitted_bytes)
        return Moved(received["bytes"], received["seconds"], cpu_s * share)

    def stop(self) -> None:
        """End the server."""
        if self._server is None:
            return
        assert self._server.stdout
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()
        self._server = None

    def _until_listening(self) -> None:
        """Reads what the server says until it waits for a client: before that it would refuse one."""
        assert self._server
        assert self._server.stdout
        for line in self._server.stdout:
            if line.startswith("Server listening"):
                return
        raise RuntimeError(f"{self.name}: its server ended")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
