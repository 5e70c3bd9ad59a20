"""The deployment file as typed values. One file is planned, simulated, started and served.

Rules of this module: every field says its unit in its name or is one of the unit types of `units`; unknown keys are
errors; nothing here reads a file (see `load`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from prfaas.deployment.units import Bandwidth, ByteSize, Seconds

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
HostPort = Annotated[str, Field(pattern=r"^[^\s:/]+:\d{1,5}$", description="host:port")]
HttpUrl = Annotated[
    str, Field(pattern=r"^https?://[^\s]+[^/\s]$", description="http(s)://host:port, no trailing slash")
]


class Strict(BaseModel):
    """Base of every section: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Strict):
    """Which model is served."""

    name: str = Field(min_length=1, max_length=256, description="Name that clients send as `model`.")
    path: str = Field(description="Directory with config.json and tokenizer files; relative to the deployment file.")
    max_model_tokens: int = Field(
        gt=0, le=16_777_216, description="Longest prompt plus output, as the engines were started."
    )


class EngineSection(Strict):
    """How `prfaas up` starts the engines of a cluster. Leave it out for engines that run already."""

    kind: Literal["vllm"] = "vllm"
    args: tuple[str, ...] = Field(default=(), description="Extra arguments for the vLLM API server.")
    env: dict[str, str] = Field(default_factory=dict, description="Extra environment of the engine process.")


class Endpoint(Strict):
    """Where one instance (an engine and the KV node beside it) is reached."""

    engine: HttpUrl = Field(description="Base URL of the engine's OpenAI API, without /v1.")
    kvnode: HttpUrl = Field(description="Base URL of the KV node's HTTP control.")
    lanes: HostPort = Field(description="host:port where the KV node listens for lanes of other nodes.")


class Cluster(Strict):
    """One datacenter's share of the deployment."""

    role: Literal["prfaas", "pd"]
    endpoints: tuple[Endpoint, ...] = Field(min_length=1)
    engine: EngineSection | None = None


class Link(Strict):
    """One direction of Ethernet between two clusters."""

    from_: Name = Field(alias="from")
    to: Name
    bandwidth: Bandwidth | None = None
    rtt: Seconds | None = None


class Policy(Strict):
    """When a prompt is prefilled in a PrfaaS cluster."""

    kind: Literal["fixed", "homogeneous"] = Field(
        default="fixed", description="`fixed`: a fixed threshold. `homogeneous`: never offload."
    )
    routing_threshold_tokens: int = Field(
        default=16_384, ge=0, description="Prompts with more uncached tokens than this are offloaded."
    )


class BlockHash(Strict):
    """How token blocks are named. Both datacenters must agree; checked when nodes connect."""

    algorithm: Literal["sha256"] = "sha256"
    seed: str = Field(default="prfaas", max_length=128)


class Transfer(Strict):
    """Settings of the data plane."""

    lanes: int = Field(default=4, ge=1, le=64, description="TCP connections per pair of nodes.")
    chunk: ByteSize = Field(default=1 << 20, ge=4096, le=1 << 26)
    arena: ByteSize = Field(default=1 << 28, ge=1 << 16, description="Shared memory of each KV node.")
    deadline: Seconds = Field(
        default=60.0, gt=0, le=3600, description="From reservation to landed; past it the request runs locally."
    )
    lease: Seconds = Field(default=30.0, gt=0, le=3600, description="How long a landing lives without being renewed.")
    hash: BlockHash = BlockHash()


class Gateway(Strict):
    """The OpenAI front door."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    max_inflight_requests: int = Field(
        default=1024, ge=1, description="More than this are refused with 429 and Retry-After."
    )
    max_body: ByteSize = Field(default=8 << 20, ge=1024)
    keep_alive: Seconds = Field(default=5.0, gt=0, description="Silence on a stream after which a comment is sent.")
    request_timeout: Seconds = Field(default=1800.0, gt=0, description="Longest life of one request.")
    connect_timeout: Seconds = Field(default=3.0, gt=0)


class Deployment(Strict):
    """A whole deployment file."""

    model: ModelSection
    clusters: dict[Name, Cluster] = Field(min_length=1)
    links: tuple[Link, ...] = ()
    policy: Policy = Policy()
    transfer: Transfer = Transfer()
    gateway: Gateway = Gateway()

    def clusters_of_role(self, role: Literal["prfaas", "pd"]) -> dict[str, Cluster]:
        """Clusters with `role`, in file order."""
        return {name: cluster for name, cluster in self.clusters.items() if cluster.role == role}


def node_name(cluster: str, index: int) -> str:
    """Name of the KV node of `cluster`'s endpoint number `index`; peers know each other by it."""
    return f"{cluster}-{index}"
