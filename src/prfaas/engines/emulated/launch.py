"""How emulated engines are started: all of a cluster in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from prfaas.engines.launch import EngineStart


class EmulatedLaunch:
    """See `engines.launch.Launch`."""

    product = "an emulated engine"
    package = "prfaas"
    shares_process = True

    def argv(self, starts: Sequence[EngineStart], python: str) -> tuple[str, ...]:
        first = starts[0]
        names = [word for start in starts for word in ("--name", start.name)]
        sockets = str(PurePath(first.socket_path).parent)
        return (python, "-m", "prfaas", "emulate", first.deployment_file, *names, "--sockets", sockets, *first.args)

    def env(self, start: EngineStart) -> dict[str, str]:
        return dict(start.env)
