"""What all requests of one gateway share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry

from prfaas.core.control.fleet import Fleet
from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.scheduler import Scheduler
from prfaas.deployment.model import Deployment, ServedModel
from prfaas.deployment.topology import topology_of
from prfaas.gateway.api.http import Scope
from prfaas.gateway.background import Background
from prfaas.gateway.prompt.tokenize import PromptTokenizer, load_tokenizer
from prfaas.gateway.story_book import StoryBook
from prfaas.gateway.tracing import RequestTracing, SpanSink
from prfaas.observe.fleet_log import FleetLog
from prfaas.observe.journal import Fold, Journal
from prfaas.observe.metrics import Metrics, build
from prfaas.observe.recording import Recording
from prfaas.observe.request_log import RequestLog
from prfaas.observe.request_metrics import RequestMetrics
from prfaas.observe.story import Stories
from prfaas.scenario.served_policy import ServedPolicy, routing_threshold


@dataclass(slots=True)
class Service:
    """Made before the event loop runs. `deployment` is replaced when its file changes, `model` stays."""

    deployment: Deployment
    model: ServedModel
    tokenizer: PromptTokenizer
    scheduler: Scheduler
    metrics: Metrics
    stories: Stories
    story_book: StoryBook
    journal: Journal
    #: None: nothing is recorded.
    recording: Recording | None = None
    background: Background = field(default_factory=Background)
    #: Of requests whose bodies are coming: they have no place yet.
    reading_ids: set[str] = field(default_factory=set)
    #: Of requests that are served: they have a place.
    admitted_ids: set[str] = field(default_factory=set)
    #: None: no spans are made.
    span_sink: SpanSink | None = None

    @property
    def num_inflight(self) -> int:
        return len(self.admitted_ids)

    @property
    def fleet(self) -> Fleet:
        return self.scheduler.fleet

    def tracing(self, scope: Scope, forwarded: dict[str, str]) -> RequestTracing:
        """A new request's; `forwarded` are the other headers that its engines get."""
        deployment = self.deployment
        return RequestTracing(scope, forwarded, deployment.gateway.telemetry, self.span_sink, self.model.name)


def build_service(deployment: Deployment, model_dir: Path, served: ServedPolicy | None = None) -> Service:
    """Read the model directory and lay out the fleet. `served` is what the deployment's policy comes to; the kind
    `prfaas` needs it. Raises OSError or ValueError for a broken tokenizer."""
    served = routing_threshold(deployment, None) if served is None else served
    terms = TransferTerms(deadline_s=deployment.transfer.deadline, lease_s=deployment.transfer.lease)
    metrics, stories = build(CollectorRegistry(), "gateway"), Stories(deployment.gateway.stories)
    recording = Recording() if deployment.gateway.record else None
    folds: list[Fold] = [stories, RequestMetrics(metrics, stories), RequestLog(stories), FleetLog(metrics)]
    return Service(
        deployment=deployment,
        model=deployment.served_model,
        tokenizer=load_tokenizer(model_dir),
        scheduler=Scheduler(topology_of(deployment), served.routes(), terms, deployment.gateway.prefix_record_blocks),
        metrics=metrics,
        stories=stories,
        story_book=StoryBook(stories),
        journal=Journal(folds if recording is None else [*folds, recording]),
        recording=recording,
    )
