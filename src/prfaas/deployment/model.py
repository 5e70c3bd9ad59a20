"""The deployment file as typed values. One file is planned, started and served.

Rules of this module: every field says its unit in its name or is one of the unit types of `units`; unknown keys are
errors; nothing here reads a file (see `load`).
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prfaas.core.link.lane_plan import MAX_CHUNK_BYTES
from prfaas.core.topology import Duty
from prfaas.deployment.identity import checked_identity
from prfaas.deployment.tls_paths import checked_template
from prfaas.deployment.units import Bandwidth, ByteSize, Seconds

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
HostPort = Annotated[str, Field(pattern=r"^[^\s:/]+:\d{1,5}$", description="host:port")]
HttpUrl = Annotated[
    str, Field(pattern=r"^https?://[^\s]+[^/\s]$", description="http(s)://host:port, no trailing slash")
]

Identity = Annotated[str, Field(max_length=2048), AfterValidator(checked_identity)]
PathTemplate = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(checked_template)]

Money = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class Strict(BaseModel):
    """Base of every section: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Strict):
    """Which model is served, and how large its KVCache is."""

    name: str | None = Field(
        default=None, min_length=1, max_length=256, description="Name that clients send as `model`. Needed to serve."
    )
    path: str | None = Field(
        default=None,
        description="Directory with config.json and tokenizer files; relative to the deployment file. Needed to serve.",
    )
    max_model_tokens: int | None = Field(
        default=None,
        gt=0,
        le=16_777_216,
        description="Longest prompt plus output, as the engines were started. Needed to serve.",
    )
    profile: str | None = Field(
        default=None, description="For planning: a shipped model profile's name, such as internal-1t-hybrid, or a file."
    )
    hf_config: str | None = Field(
        default=None, description="For planning: a config.json from which KVCache sizes are computed."
    )


class ServedModel(NamedTuple):
    """What serving needs of the model; see `ModelSection`."""

    name: str
    path: str | None
    max_model_tokens: int


#: `emulated`: no accelerator, time from the hardware profile (see `emulation`).
EngineKind = Literal["vllm", "emulated"]


class EngineSection(Strict):
    """How `prfaas up` starts the engines of a cluster. Leave it out for engines that run already."""

    kind: EngineKind = "vllm"
    args: tuple[str, ...] = Field(default=(), description="Extra arguments for the engine's server.")
    env: dict[str, str] = Field(default_factory=dict, description="Extra environment of the engine process.")


class Endpoint(Strict):
    """One instance: where its engine and the KV node beside it are reached, and what it is there for."""

    name: Name | None = Field(
        default=None, description="Name of the instance; default: CLUSTER-INDEX. Nodes know each other by it."
    )
    duty: Duty | None = Field(
        default=None,
        description="What the instance does: `prefill`, `decode`, or `both` for its own prompts. Default: `both` in a"
        " PD cluster, `prefill` in a PrfaaS cluster, where it is the only one.",
    )
    kind: EngineKind = "vllm"
    engine: HttpUrl = Field(description="Base URL of the engine's OpenAI API, without /v1.")
    kvnode: HttpUrl = Field(description="Base URL of the KV node's HTTP control.")
    lanes: HostPort = Field(description="host:port where the KV node listens for lanes of other nodes.")

    def instance_name(self, cluster: str, index: int) -> str:
        """Of endpoint number `index` of `cluster`."""
        return self.name or f"{cluster}-{index}"


class Decode(Strict):
    """How fast one instance decodes within the SLO; overrides the hardware profile."""

    max_batch: int = Field(gt=0, le=1 << 20, description="Sequences that one instance decodes at once (BS_max).")
    step: Seconds = Field(gt=0, description="Duration of one decode step with that many sequences (T_decode).")


class Cluster(Strict):
    """One datacenter's share of the deployment."""

    role: Literal["prfaas", "pd"]
    endpoints: tuple[Endpoint, ...] = Field(default=(), description="One per instance. Needed to serve.")
    engine: EngineSection | None = None
    identity: Identity | None = Field(
        default=None,
        description="DNS name or URI that the certificates of its nodes must carry as a subject alternative name;"
        " default: the cluster's name.",
    )
    accelerator: Name | None = Field(
        default=None, description="For planning: names a hardware profile that is shipped for the model, such as h200."
    )
    profile: str | None = Field(
        default=None, description="For planning: a hardware profile's file, as `prfaas profile` writes it."
    )
    instances: int | None = Field(
        default=None, ge=1, le=100_000, description="For planning: engine replicas; default: the number of endpoints."
    )
    gpus_per_instance: int | None = Field(default=None, ge=1, le=1024, description="Default: the hardware profile's.")
    prefill_instances: int | None = Field(
        default=None, ge=0, description="For planning a PD cluster: fixes how many instances prefill."
    )
    decode: Decode | None = None
    convertible: bool = Field(
        default=False,
        description="Whether the gateway may change duties of this PD cluster's instances, between `prefill` and"
        " `decode`, as load asks (policy kind prfaas). Nodes of such a cluster keep lanes to one another.",
    )
    rtt: Seconds = Field(default=0.0, description="Round trip from the gateway to this cluster. Routing counts it.")
    price_per_gpu_hour: Money | None = Field(default=None, description="Overrides prices.per_gpu_hour.")

    @property
    def num_instances(self) -> int:
        """Engine replicas; 0 if the file does not say."""
        return len(self.endpoints) if self.instances is None else self.instances

    @property
    def duties(self) -> tuple[Duty, ...]:
        """Of the endpoints, in their order."""
        default = Duty.PREFILL if self.role == "prfaas" else Duty.BOTH
        return tuple(endpoint.duty or default for endpoint in self.endpoints)


class Link(Strict):
    """One direction of Ethernet between two clusters."""

    from_: Name = Field(alias="from")
    to: Name
    bandwidth: Bandwidth | None = Field(default=None, gt=0, description="Needed to plan.")
    rtt: Seconds | None = None
    emulated_at: HostPort | None = Field(
        default=None,
        description="Where `prfaas wan` listens for the lanes of this link: one port per instance of the target"
        " cluster, counting up from this one, in file order.",
    )
    price_per_gb: Money | None = Field(default=None, description="Overrides prices.per_egress_gb.")


class LogNormal(Strict):
    """Log-normal lengths with parameters of the logarithm, truncated to [min, max] tokens."""

    mu: float = Field(allow_inf_nan=False)
    sigma: float = Field(gt=0, allow_inf_nan=False)
    min: int = Field(ge=1)
    max: int = Field(ge=1, le=1 << 27)


class Trace(Strict):
    """Lengths of a trace in the Mooncake format."""

    file: str = Field(description="JSON lines; relative to the deployment file.")
    lengths: Literal["uncached", "raw"] = Field(
        default="uncached", description="`uncached`: what an infinite prefix cache leaves. `raw`: whole prompts."
    )
    block_tokens: int = Field(default=512, ge=1, le=1 << 20, description="Tokens per entry of hash_ids.")


class InputTokens(Strict):
    """Uncached prompt lengths: exactly one of these."""

    lognormal: LogNormal | None = None
    constant: int | None = Field(default=None, ge=1, le=1 << 27)
    trace: Trace | None = None


class Poisson(Strict):
    """Independent arrivals."""

    rate: float = Field(gt=0, allow_inf_nan=False, description="Requests per second.")


class Arrivals(Strict):
    """When requests come."""

    poisson: Poisson


class Workload(Strict):
    """What is asked of the deployment; for planning."""

    input_tokens: InputTokens
    output_tokens: float | None = Field(
        default=None, gt=0, le=1 << 27, allow_inf_nan=False, description="Mean output; default: the trace's."
    )
    arrivals: Arrivals | None = None


class Slo(Strict):
    """What answers must keep."""

    tpot: Seconds | None = Field(default=None, gt=0, description="Longest time per output token.")


class Prices(Strict):
    """Money; for planning. Any currency, the same everywhere."""

    currency: str = Field(default="USD", min_length=1, max_length=16)
    per_gpu_hour: dict[Name, Money] = Field(default_factory=dict, description="By accelerator.")
    per_egress_gb: Money = Field(default=0.0, description="Per 10^9 bytes that leave a PrfaaS cluster.")


class Policy(Strict):
    """When a prompt is prefilled in a PrfaaS cluster."""

    kind: Literal["prfaas", "fixed", "homogeneous", "naive"] = Field(
        default="fixed",
        description="`prfaas`: wherever the answer is expected to cost least, by queues, links and caches; needs all"
        " that planning needs. `fixed`: over a fixed threshold. `homogeneous`: never. `naive`: always.",
    )
    routing_threshold_tokens: int = Field(
        default=16_384, ge=0, description="Prompts with more uncached tokens than this are offloaded (kind fixed)."
    )
    max_ttft: Seconds | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Refuse a request at once, with 429 and Retry-After, if its answer is expected to begin later than"
        " this (kind prfaas).",
    )
    cool_down: Seconds = Field(
        default=120.0,
        ge=1,
        le=86_400,
        description="Shortest time between two conversions of instances of convertible clusters (kind prfaas).",
    )


class BlockHash(Strict):
    """How token blocks are named. Both datacenters must agree; checked when nodes connect."""

    algorithm: Literal["sha256"] = "sha256"
    seed: str = Field(default="prfaas", max_length=128)


class TlsSection(Strict):
    """Certificate files of the nodes, in PEM. Relative paths start at the deployment file; `{cluster}` and `{node}`
    stand for a node's cluster and name."""

    ca: PathTemplate = Field(description="Authorities whose certificates are accepted; one or several.")
    cert: PathTemplate = Field(description="A node's certificate, followed by intermediate ones if there are any.")
    key: PathTemplate = Field(description="Its private key, without a password.")


class Transfer(Strict):
    """Settings of the data plane."""

    lanes: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        default="auto", description="TCP connections per pair of nodes; auto: from bandwidth and rtt of the links."
    )
    chunk: ByteSize = Field(
        default=MAX_CHUNK_BYTES,
        ge=4096,
        le=1 << 26,
        description="Largest piece sent at once; how large pieces are follows from what the link carries.",
    )
    congestion: str = Field(
        default="auto",
        pattern=r"^[a-z0-9_]{1,15}$",
        description="TCP congestion control of the lanes; auto: BBR or cubic, whichever moves more.",
    )
    pacing: bool = Field(default=True, description="Hold the lanes of a link together to what it carries.")
    arena: ByteSize = Field(default=1 << 28, ge=1 << 16, description="Shared memory of each KV node.")
    deadline: Seconds = Field(
        default=60.0, gt=0, le=3600, description="From reservation to landed; past it the request runs locally."
    )
    lease: Seconds = Field(default=30.0, gt=0, le=3600, description="How long a landing lives without being renewed.")
    hash: BlockHash = BlockHash()
    encryption: Literal["tls", "none"] = Field(
        default="tls",
        description="`tls`: nodes prove who they are, and lanes are encrypted. `none`: plaintext, for a private"
        " network.",
    )
    tls: TlsSection | None = Field(
        default=None,
        description="Needed for `encryption: tls`, unless `prfaas up` starts every node on one machine: it then makes"
        " throw-away certificates.",
    )


class Emulation(Strict):
    """How emulated engines differ from the hardware that they stand for. The rest of the file describes the real
    deployment: it is planned and simulated as it stands, and served in this scale."""

    time_scale: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="Seconds that pass here for a second of the profiles: 0.1 is ten times as fast. Round trips, decode"
        " steps, `slo.tpot`, `policy.max_ttft` and `policy.cool_down` shrink with it.",
    )
    bytes_scale: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Bytes of KVCache here for a byte of the model's. Links carry this share of their bandwidth,"
        " divided by `time_scale`.",
    )
    block_tokens: int = Field(default=128, ge=1, le=1 << 16, description="Tokens of a block of the engines' caches.")
    cache_tokens: int = Field(
        default=1 << 20, ge=1, le=1 << 40, description="Tokens that one instance's prefix cache holds."
    )
    stream_interval: int = Field(
        default=32, ge=1, le=1 << 20, description="Tokens in one event of a streamed answer, after its first."
    )
    process_for: Literal["cluster", "instance"] = Field(
        default="cluster",
        description="Whether `prfaas up` starts the engines of a `cluster` as one process, or each `instance` as its"
        " own, which can then fail alone.",
    )


class Telemetry(Strict):
    """Where the gateway's spans go. Metrics and logs need no setting."""

    otlp_endpoint: HttpUrl | None = Field(
        default=None,
        description="Base URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318; without"
        " it no spans are made. Needs the extra `otel`.",
    )
    sample_ratio: float = Field(
        default=1.0, ge=0, le=1, description="Share of the traces that begin here; a caller's decision is followed."
    )


class Front(Strict):
    """What a client's connection to the gateway may cost, with or without a request."""

    max_head: ByteSize = Field(
        default=64 << 10, ge=1024, description="Of a request's first line and its headers. Larger ones get 431."
    )
    head_timeout: Seconds = Field(
        default=10.0, gt=0, description="For a head to be whole, and for a first one to come."
    )
    idle_timeout: Seconds = Field(
        default=310.0,
        gt=0,
        description="Between two requests. Longer than clients and proxies keep idle connections, so that they close"
        " them first: httpx 5 s, aiohttp 15, nginx and load balancers 60, aiperf 300.",
    )
    min_body_rate: ByteSize = Field(
        default=1024, ge=0, description="Bytes a second of a body, on average. Slower ones get 408."
    )
    body_grace: Seconds = Field(default=10.0, gt=0, description="So long a body may be slower.")
    write_timeout: Seconds = Field(
        default=60.0, gt=0, description="A client that takes nothing of its answer for so long is cut off."
    )
    max_connections: int | None = Field(
        default=None,
        ge=1,
        description="In all. For one more, the connection that has been idle longest is closed. At most, and if it is"
        " not given, what the limit of open descriptors leaves beside the gateway's own connections.",
    )
    max_connections_of_address: int | None = Field(
        default=None,
        ge=1,
        description="From one address. Not to be set behind a proxy, from whose address all connections come.",
    )


class Gateway(Strict):
    """The OpenAI front door."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    trust_priority: bool = Field(
        default=False,
        description="Whether the field `priority` of a request, as vLLM has it, puts it before others that wait for a"
        " prefill instance. Whoever may set it can keep others waiting.",
    )
    record: bool = Field(
        default=False,
        description="Keep lengths, times and salted hashes of prompts' blocks of the last requests, for"
        " `prfaas record`. Whoever can reach the gateway can read them.",
    )
    max_inflight_requests: int = Field(
        default=1024, ge=1, description="More than this are refused with 429 and Retry-After."
    )
    max_body: ByteSize = Field(default=8 << 20, ge=1024)
    max_inflight_bytes: ByteSize = Field(
        default=1 << 30,
        ge=1 << 20,
        description="Of bodies that are being read or whose requests go on. More are refused with 429 and Retry-After.",
    )
    stories: int = Field(
        default=4096, ge=1, le=1 << 20, description="Requests that have ended and whose stories are kept."
    )
    prefix_record_blocks: int = Field(
        default=262_144,
        ge=1,
        le=1 << 28,
        description="Blocks of each instance's prefix cache that are kept on record, about 150 bytes each.",
    )
    keep_alive: Seconds = Field(default=5.0, gt=0, description="Silence on a stream after which a comment is sent.")
    request_timeout: Seconds = Field(default=1800.0, gt=0, description="Longest life of one request.")
    connect_timeout: Seconds = Field(default=3.0, gt=0)
    stop_notice: Seconds = Field(
        default=0.0,
        ge=0,
        description="After SIGTERM /ready answers 503 for so long while new requests are still served: until whoever"
        " balances the load has seen it.",
    )
    stop_grace: Seconds = Field(
        default=30.0,
        ge=0,
        description="Then nothing new is taken, and requests that go on get so long. Streams that last longer end with"
        " an error event.",
    )
    front: Front = Front()
    telemetry: Telemetry = Telemetry()


class Deployment(Strict):
    """A whole deployment file."""

    model: ModelSection
    clusters: dict[Name, Cluster] = Field(min_length=1)
    links: tuple[Link, ...] = ()
    workload: Workload | None = None
    slo: Slo = Slo()
    policy: Policy = Policy()
    prices: Prices | None = None
    emulation: Emulation | None = None
    transfer: Transfer = Transfer()
    gateway: Gateway = Gateway()

    @property
    def served_model(self) -> ServedModel:
        """The model of a deployment that `load_deployment` found complete."""
        model = self.model
        assert model.name is not None
        assert model.path is not None or self.is_emulated
        assert model.max_model_tokens is not None
        return ServedModel(model.name, model.path, model.max_model_tokens)

    @property
    def is_emulated(self) -> bool:
        """Every engine is, and there is one."""
        return {endpoint.kind for cluster in self.clusters.values() for endpoint in cluster.endpoints} == {"emulated"}

    def clusters_of_role(self, role: Literal["prfaas", "pd"]) -> dict[str, Cluster]:
        """Clusters with `role`, in file order."""
        return {name: cluster for name, cluster in self.clusters.items() if cluster.role == role}

    def identity_of(self, cluster: str) -> str:
        """What the certificates of a cluster's nodes must carry."""
        return self.clusters[cluster].identity or cluster
