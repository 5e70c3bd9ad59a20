"""A deployment file as the planner's scenario. What planning needs and the file lacks is told with line and field."""

from __future__ import annotations

from pathlib import Path

from prfaas.core.errors import PrfaasError
from prfaas.core.model.decode import DecodePoint, decode_within
from prfaas.core.planning.scenario import PdCluster, PolicyKind, PrfaasCluster, Scenario, ServiceTime, WanLink
from prfaas.core.planning.workload import Workload
from prfaas.core.topology import Duty
from prfaas.deployment.document import DeploymentError, Document, FieldPath
from prfaas.deployment.load import read_deployment
from prfaas.deployment.model import Cluster, Deployment
from prfaas.profiles.load import Hardware, Model
from prfaas.scenario.hardware import decode_points_of, hardware_of, model_of
from prfaas.scenario.workload import read_workload

#: A workload's longest prompt may lie this far beyond the longest measured one before it is worth a word.
_FAR = 1.1

#: Bytes in one GB of a price list.
_GB = 1e9


def build_scenario(path: Path, service_time: ServiceTime = ServiceTime.AT_MEAN) -> Scenario:
    """Read `path` and everything that it names. Raises DeploymentError with one line per problem."""
    return scenario_of(*read_deployment(path), service_time)


def scenario_of(
    deployment: Deployment, document: Document, service_time: ServiceTime = ServiceTime.AT_MEAN
) -> Scenario:
    """Of a file that has been read. Raises DeploymentError with one line per problem."""
    return _Builder(deployment, document, document.path.resolve().parent).scenario(service_time)


class _Builder:
    """Collects problems, so that all are told at once."""

    def __init__(self, deployment: Deployment, document: Document, directory: Path) -> None:
        self._deployment = deployment
        self._document = document
        self._directory = directory
        self._problems: list[str] = []
        self._notes: list[str] = []
        self._cautions: list[str] = []

    def scenario(self, service_time: ServiceTime) -> Scenario:
        deployment = self._deployment
        model = self._model()
        workload, mean_output_tokens = self._workload()
        self._stop_if_wrong()
        assert model is not None
        assert workload is not None
        workload_section = deployment.workload
        assert workload_section is not None
        policy = PolicyKind(deployment.policy.kind)
        pd = [self._pd(name, model, workload, mean_output_tokens) for name in deployment.clusters_of_role("pd")]
        remote = deployment.clusters_of_role("prfaas") if policy is not PolicyKind.HOMOGENEOUS else {}
        prfaas = [self._prfaas(name, model, workload) for name in remote]
        links = self._links(policy)
        self._check_prices([*(deployment.clusters_of_role("pd")), *remote])
        self._stop_if_wrong()
        fixed = policy is PolicyKind.FIXED
        return Scenario(
            workload=workload,
            mean_output_tokens=mean_output_tokens,
            kv_bytes=model.kv_bytes,
            prfaas=tuple(cluster for cluster in prfaas if cluster is not None),
            pd=tuple(cluster for cluster in pd if cluster is not None),
            links=tuple(links),
            policy=policy,
            threshold_tokens=float(deployment.policy.routing_threshold_tokens) if fixed else None,
            service_time=service_time,
            currency=deployment.prices.currency if deployment.prices else "USD",
            arrival_rps=workload_section.arrivals.poisson.rate if workload_section.arrivals else None,
            notes=(f"KV sizes of {model.name}: {model.source}", *dict.fromkeys(self._notes)),
            cautions=tuple(dict.fromkeys(self._cautions)),
        )

    def _stop_if_wrong(self) -> None:
        if self._problems:
            raise DeploymentError("\n".join(self._problems))

    def _wrong(self, field: FieldPath, text: str) -> None:
        self._problems.append(self._document.problem(field, text))

    def _model(self) -> Model | None:
        section = self._deployment.model
        try:
            return model_of(section, self._directory)
        except (PrfaasError, OSError) as error:
            given = [name for name in ("profile", "hf_config", "path") if getattr(section, name) is not None]
            self._wrong(("model", *given[:1]), str(error))
            return None

    def _workload(self) -> tuple[Workload | None, float]:
        section = self._deployment.workload
        if section is None:
            self._wrong(("workload",), "missing; planning needs input_tokens and output_tokens")
            return None, 0.0
        try:
            workload, traced_output = read_workload(section.input_tokens, self._directory)
        except PrfaasError as error:
            self._wrong(("workload", "input_tokens", next(iter(section.input_tokens.model_fields_set))), str(error))
            return None, 0.0
        output = traced_output if section.output_tokens is None else section.output_tokens
        if not output:
            self._wrong(("workload", "output_tokens"), "missing; add the mean number of output tokens")
            return None, 0.0
        return workload, output

    def _hardware(self, name: str, cluster: Cluster, model: Model, workload: Workload) -> Hardware | None:
        path: FieldPath = ("clusters", name)
        try:
            found = hardware_of(cluster, model, self._directory)
        except (PrfaasError, OSError) as error:
            given = [field for field in ("profile", "accelerator") if getattr(cluster, field) is not None]
            self._wrong((*path, *given[:1]), str(error))
            return None
        self._notes.append(f"{found.model} on {found.accelerator}: {found.source}")
        if self._deployment.model.profile is not None and found.model != model.name:
            self._cautions.append(f"{name}: its profile was measured with {found.model}, not {model.name}")
            self._notes.append(self._cautions[-1])
        if found.max_tokens is not None and workload.max_tokens > found.max_tokens * _FAR:
            text = f"prompts up to {workload.max_tokens:.0f} tokens, measured up to {found.max_tokens:.0f}: prolonged"
            self._cautions.append(f"{name}: {text} in a straight line")
            self._notes.append(self._cautions[-1])
        return found

    def _prfaas(self, name: str, model: Model, workload: Workload) -> PrfaasCluster | None:
        cluster = self._deployment.clusters[name]
        hardware = self._hardware(name, cluster, model, workload)
        if hardware is None:
            return None
        gpus = cluster.gpus_per_instance or hardware.gpus_per_instance
        self._check_gpus(name, cluster, hardware)
        price = self._gpu_price(cluster, hardware)
        return PrfaasCluster(name, cluster.num_instances, gpus, hardware.prefill_s, price)

    def _pd(self, name: str, model: Model, workload: Workload, mean_output_tokens: float) -> PdCluster | None:
        cluster = self._deployment.clusters[name]
        hardware = self._hardware(name, cluster, model, workload)
        decode = None if hardware is None else self._decode(name, cluster, hardware)
        if hardware is None or decode is None:
            return None
        self._check_gpus(name, cluster, hardware)
        num_idle = self._num_idle(name, cluster)
        return PdCluster(
            name=name,
            num_instances=cluster.num_instances - num_idle,
            gpus_per_instance=cluster.gpus_per_instance or hardware.gpus_per_instance,
            prefill_s=hardware.prefill_s,
            decode_rps=decode.rps(mean_output_tokens),
            num_prefill=None if num_idle else _num_prefill(cluster),
            price_per_gpu_hour=self._gpu_price(cluster, hardware),
            decode=decode,
            decode_steps=hardware.decode if cluster.decode is None else (),
        )

    def _num_idle(self, name: str, cluster: Cluster) -> int:
        """Instances that do nothing while PrfaaS works: the policy naive leaves no prompt to a prefill instance."""
        num_idle = cluster.duties.count(Duty.PREFILL) if self._deployment.policy.kind == "naive" else 0
        if num_idle:
            text = f"{num_idle} with duty prefill idle under policy naive, and neither planned nor priced"
            self._notes.append(f"{name}: {text}")
        return num_idle

    def _decode(self, name: str, cluster: Cluster, hardware: Hardware) -> DecodePoint | None:
        points = decode_points_of(cluster, hardware)
        field: FieldPath = ("clusters", name, "decode")
        if not points:
            text = f"the profile of {hardware.accelerator} has no decode times; add {{max_batch: 20, step: 25ms}}"
            self._wrong(field, text)
            return None
        try:
            return decode_within(points, self._deployment.slo.tpot)
        except PrfaasError as error:
            self._wrong(field if cluster.decode is not None else ("slo", "tpot"), f"{name}: {error}")
            return None

    def _check_gpus(self, name: str, cluster: Cluster, hardware: Hardware) -> None:
        if cluster.gpus_per_instance not in (None, hardware.gpus_per_instance):
            text = f"the profile was measured with {hardware.gpus_per_instance} GPUs per instance; remove it"
            self._wrong(("clusters", name, "gpus_per_instance"), text)

    def _links(self, policy: PolicyKind) -> list[WanLink]:
        deployment = self._deployment
        if policy is PolicyKind.HOMOGENEOUS:
            return []
        if not deployment.links:
            self._wrong(("links",), "missing; add one from a PrfaaS cluster to a PD cluster, with its bandwidth")
        default = deployment.prices.per_egress_gb if deployment.prices else 0.0
        links = []
        for index, link in enumerate(deployment.links):
            if deployment.clusters[link.from_].role == "pd":
                continue  # KVCache does not take the way back
            if link.bandwidth is None:
                self._wrong(("links", index, "bandwidth"), "missing; planning needs it, for example 100Gbps")
                continue
            per_gb = default if link.price_per_gb is None else link.price_per_gb
            links.append(WanLink(link.from_, link.to, link.bandwidth, per_gb / _GB))
        return links

    def _gpu_price(self, cluster: Cluster, hardware: Hardware) -> float | None:
        if cluster.price_per_gpu_hour is not None:
            return cluster.price_per_gpu_hour
        prices = self._deployment.prices
        return None if prices is None else prices.per_gpu_hour.get(hardware.accelerator)

    def _check_prices(self, names: list[str]) -> None:
        """All clusters have a price, or none has."""
        prices = self._deployment.prices
        clusters = {name: self._deployment.clusters[name] for name in names}
        listed = prices.per_gpu_hour if prices is not None else {}
        unpriced = [
            name
            for name, cluster in clusters.items()
            if cluster.price_per_gpu_hour is None and (cluster.accelerator or "") not in listed
        ]
        # A profile's file may name its accelerator itself; then the scenario's own check tells it.
        unpriced = [name for name in unpriced if clusters[name].profile is None]
        any_price = bool(listed) or any(cluster.price_per_gpu_hour is not None for cluster in clusters.values())
        for name in unpriced if any_price else ():
            text = f"no price for the GPUs of {name} ({clusters[name].accelerator}); add one, or remove all prices"
            self._wrong(("prices", "per_gpu_hour"), text)
        if prices is not None and not any_price:
            self._wrong(("prices",), "no GPU has a price; add per_gpu_hour, or remove prices")


def _num_prefill(cluster: Cluster) -> int | None:
    """How many instances prefill, if the file says so; None lets the plan choose. Duties say it unless an instance has
    both."""
    if cluster.endpoints and Duty.BOTH not in cluster.duties:
        return cluster.duties.count(Duty.PREFILL)
    return cluster.prefill_instances
