"""`prfaas demo`: which of the two, and how it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rich.console import Console

from prfaas.core.errors import PrfaasError
from prfaas.launch.up import stop_on_sigterm

Engine = Literal["emulated", "vllm"]


def run(directory: Path, engine: Engine) -> int:
    """Returns 0 only if everything that it claims was seen; 130 on Ctrl-C; otherwise 1 after one sentence that says
    what failed and where the logs are."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    stop_on_sigterm()
    started_s = time.monotonic()
    try:
        _demo(engine)(directory, console)
    except KeyboardInterrupt:
        console.print("interrupted; every process is stopped")
        return 130
    except (PrfaasError, OSError) as error:
        logs = directory / "logs"
        text = f"demo failed: {error}" + (f"\nlogs are in {logs}/" if logs.is_dir() else "")
        Console(stderr=True).print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    console.print(f"[green]done[/] in {time.monotonic() - started_s:.0f} s; files are in {directory}/", highlight=False)
    return 0


def _demo(engine: Engine) -> Callable[[Path, Console], None]:
    # Each imports what only it needs.
    if engine == "vllm":
        from prfaas.demo.vllm_demo import demo
    else:
        from prfaas.demo.emulated_demo import demo
    return demo
