"""What all requests of one gateway share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from prfaas.core.control.router import RoutePolicy
from prfaas.deployment.model import Deployment
from prfaas.gateway.api.http import Scope
from prfaas.gateway.background import Background
from prfaas.gateway.fleet import Fleet, build_fleet
from prfaas.gateway.offload import OffloadClients
from prfaas.gateway.prompt.tokenize import PromptTokenizer, load_tokenizer
from prfaas.gateway.story import StoryBook
from prfaas.gateway.tracing import RequestTracing, SpanSink
from prfaas.gateway.upstream.clients import Engines
from prfaas.gateway.upstream.link_feed import LinkFeed
from prfaas.observe.metrics import Metrics, build
from prfaas.scenario.served_policy import ServedPolicy, routing_threshold


@dataclass(slots=True)
class Service:
    """Made before the event loop runs; `clients` comes when the session is open."""

    deployment: Deployment
    tokenizer: PromptTokenizer
    fleet: Fleet
    policy: RoutePolicy
    metrics: Metrics
    stories: StoryBook = field(default_factory=StoryBook)
    background: Background = field(default_factory=Background)
    num_inflight: int = 0
    opened: OffloadClients | None = None
    link_feed: LinkFeed | None = None
    #: None: no spans are made.
    span_sink: SpanSink | None = None

    @property
    def clients(self) -> OffloadClients:
        """The upstream clients; only while the gateway runs."""
        assert self.opened is not None, "the gateway has not started"
        return self.opened

    @property
    def engines(self) -> Engines:
        """Shorthand for the hot path."""
        return self.clients.engines

    def tracing(self, scope: Scope, forwarded: dict[str, str]) -> RequestTracing:
        """A new request's; `forwarded` are the other headers that its engines get."""
        deployment = self.deployment
        return RequestTracing(
            scope, forwarded, deployment.gateway.telemetry, self.span_sink, deployment.served_model.name
        )


def build_service(deployment: Deployment, model_dir: Path, served: ServedPolicy | None = None) -> Service:
    """Read the model directory and lay out the fleet. `served` is what the deployment's policy comes to; the kind
    `prfaas` needs it. Raises OSError or ValueError for a broken tokenizer."""
    served = routing_threshold(deployment, None) if served is None else served
    return Service(
        deployment=deployment,
        tokenizer=load_tokenizer(model_dir),
        fleet=build_fleet(deployment),
        policy=RoutePolicy(
            offload=served.offload,
            threshold_tokens=served.threshold_tokens,
            links=frozenset((link.from_, link.to) for link in deployment.links),
        ),
        metrics=build(CollectorRegistry(), "gateway"),
    )
