"""The three deployments of the paper's case study, served on this machine by emulated engines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from prfaas.demo.case_study import PRFAAS, case_study_document
from prfaas.deployment.fronts import control_address
from prfaas.deployment.load import load_deployment
from prfaas.testing.deployed import http
from prfaas.testing.emulated_site import EmulatedSite
from prfaas.testing.footprint import cpu_s

POLICIES: Final = ("prfaas", "homogeneous", "naive")
#: The paper's N_p of its PD cluster (Table 6), and instances that this cluster has.
_PREFILL: Final = {"prfaas": 3, "homogeneous": 9, "naive": 0}
_IN_PD: Final = {"prfaas": 8, "homogeneous": 12, "naive": 8}


def document_of(policy: str, time_scale: float) -> dict[str, Any]:
    """Raises ValueError for a policy that the paper does not have."""
    if policy not in POLICIES:
        raise ValueError(f"{policy}: one of {', '.join(POLICIES)}")
    document = case_study_document(
        num_prefill=_PREFILL[policy], num_pd=_IN_PD[policy], policy={"kind": policy}, time_scale=time_scale
    )
    # Policies of others bind a prompt to an instance when it comes; its landing waits as long as it is queued there.
    document["transfer"] |= {"deadline": "600s", "lease": "600s"}
    if policy == "homogeneous":
        del document["clusters"][PRFAAS], document["links"]
    return document


class Served(EmulatedSite):
    """One of them, up within its `with`. Seconds and bytes are those of this machine, not of the profiles. What is
    found out about it goes to `folder`, with a copy of its file, which outlives it."""

    def __init__(self, policy: str, folder: Path, time_scale: float) -> None:
        super().__init__(document_of(policy, time_scale))
        self.policy, self.folder = policy, folder
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.file, file_in(folder))
        self._control = control_address(load_deployment(self.file))

    def carried_bytes(self) -> int:
        """That crossed the link between the clusters since it is there; without one 0."""
        if self._control is None:
            return 0
        (link,) = http("http://{}:{}/links".format(*self._control))[0]["links"]
        return int(link["carried_bytes"])

    def cpu_s(self) -> float:
        """Processor time of all its processes since they began."""
        return sum(cpu_s(running.pid) for running in self.supervisor.processes.values())


def file_in(folder: Path) -> Path:
    """The deployment file that was served."""
    return folder / "deployment.yaml"


def prfaas_json(*arguments: str) -> dict[str, Any]:
    """What this command prints. Raises CalledProcessError."""
    command = [sys.executable, "-m", "prfaas", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
