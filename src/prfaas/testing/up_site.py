"""A deployment that `prfaas up --restart` runs as a process of its own, for what is done to running deployments."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from prfaas.launch.addresses import free_ports_in_a_row
from prfaas.launch.state_file import STATE_FILE
from prfaas.testing.emulated_site import emulated_document

#: Of a dozen Python processes on a machine with other work.
START_TIMEOUT_S: Final = 300.0
_END_TIMEOUT_S: Final = 60.0


def harmed_document(**more: Any) -> dict[str, Any]:
    """One PrfaaS instance, two that prefill and two that decode, each a process of its own, over an emulated link;
    prompts of a few thousand tokens, most of which leave."""
    base = free_ports_in_a_row(5)
    length = {"mu": 8.5, "sigma": 0.8, "min": 512, "max": 32_768}
    return emulated_document(
        num_prfaas=1,
        num_prefill=2,
        num_decode=2,
        policy={"kind": "prfaas"},
        emulation={"time_scale": 0.2, "process_for": "instance"},
        **{
            "links": [
                {"from": "west", "to": "east", "bandwidth": "100Gbps", "rtt": "20ms",
                 "emulated_at": f"127.0.0.1:{base + 1}"}
            ],
            "workload": {"input_tokens": {"lognormal": length}, "output_tokens": 128},
            "transfer": {"lanes": 2, "arena": "64MiB", "deadline": "5s", "lease": "5s"},
            **more,
        },
    )  # fmt: skip


@contextmanager
def running_up(document: dict[str, Any]) -> Iterator[tuple[Path, Path]]:
    """The file, and the folder of the logs, while it runs. Raises RuntimeError, with what it said, if it ends early."""
    folder = Path(tempfile.mkdtemp(prefix="prfaas-"))
    file, logs = folder / "deployment.yaml", folder / "logs"
    try:
        file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        argv = [sys.executable, "-m", "prfaas", "up", str(file), "--logs", str(logs), "--restart"]
        with (folder / "up.log").open("wb") as told, subprocess.Popen(argv, stderr=told) as process:
            try:
                _wait_up(process, folder, logs)
                yield file, logs
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_END_TIMEOUT_S)
                finally:
                    process.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_up(process: subprocess.Popen[bytes], folder: Path, logs: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (logs / STATE_FILE).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"'prfaas up' did not come up:\n{(folder / 'up.log').read_text(errors='replace')}")
        time.sleep(0.1)
