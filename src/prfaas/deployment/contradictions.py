"""Parts of a deployment file that are fine by themselves and do not fit together. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from prfaas.core.topology import Duty
from prfaas.deployment.document import FieldPath
from prfaas.deployment.fronts import emulation_problems
from prfaas.deployment.model import Cluster, Deployment, Link


def contradictions(deployment: Deployment) -> list[tuple[FieldPath, str]]:
    """Every one, with the field that it is told of and what to do."""
    problems: list[tuple[FieldPath, str]] = []
    if not deployment.clusters_of_role("pd"):
        problems.append((("clusters",), "clusters: at least one with role: pd is needed; it decodes"))
    if deployment.policy.kind != "homogeneous" and not deployment.clusters_of_role("prfaas"):
        kind = deployment.policy.kind
        text = f"policy.kind: {kind} needs a cluster with role: prfaas; add one, or write kind: homogeneous"
        problems.append((("policy",), text))
    return [
        *problems,
        *_bad_model(deployment),
        *_bad_clusters(deployment),
        *_bad_duties(deployment),
        *_bad_names(deployment),
        *_bad_policy(deployment),
        *_bad_naive(deployment),
        *_bad_links(deployment),
        *_bad_addresses(deployment),
        *_bad_kinds(deployment),
        *_bad_encryption(deployment),
        *_bad_gateway(deployment),
    ]


def _bad_gateway(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    gateway = deployment.gateway
    if gateway.max_body > gateway.max_inflight_bytes:
        text = f"gateway.max_body: {gateway.max_body} bytes are more than max_inflight_bytes"
        yield ("gateway", "max_body"), f"{text}, so such a body could never be taken; lower it, or raise the other"


def _bad_model(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    if deployment.model.profile is not None and deployment.model.hf_config is not None:
        yield ("model", "hf_config"), "model.hf_config: profile already says which model it is; remove one of the two"
    given = deployment.workload.input_tokens.model_fields_set if deployment.workload else {"trace"}
    if len(given) != 1:
        text = "workload.input_tokens: give exactly one of lognormal, constant, trace"
        yield ("workload", "input_tokens"), text


def _bad_clusters(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    for name, cluster in deployment.clusters.items():
        path: FieldPath = ("clusters", name)
        where = f"clusters.{name}"
        num = cluster.num_instances
        if not num:
            yield path, f"{where}: give endpoints (to serve it) or instances (to plan it)"
        elif cluster.endpoints and num != len(cluster.endpoints):
            text = f"{where}.instances: {num}, but there are {len(cluster.endpoints)} endpoints; remove instances"
            yield (*path, "instances"), text
        if cluster.accelerator is not None and cluster.profile is not None:
            yield (*path, "profile"), f"{where}.profile: accelerator already names a shipped profile; remove one"
        yield from _bad_split(path, where, cluster)


def _bad_split(path: FieldPath, where: str, cluster: Cluster) -> Iterator[tuple[FieldPath, str]]:
    if cluster.role == "prfaas":
        for field in ("prefill_instances", "decode", "convertible"):
            if getattr(cluster, field) not in (None, False):
                yield (*path, field), f"{where}.{field}: a cluster with role prfaas only prefills; remove it"
    elif cluster.endpoints:
        return  # see _bad_pd_duties
    elif cluster.prefill_instances is not None and 0 < cluster.num_instances <= cluster.prefill_instances:
        text = f"{where}.prefill_instances: {cluster.prefill_instances} of {cluster.num_instances} leave none to decode"
        yield (*path, "prefill_instances"), text


def _bad_duties(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    for name, cluster in deployment.clusters.items():
        path: FieldPath = ("clusters", name)
        where = f"clusters.{name}"
        if cluster.role == "prfaas":
            for index, duty in enumerate(cluster.duties):
                if duty is not Duty.PREFILL:
                    text = f"{duty}, but a cluster with role prfaas only prefills; remove it"
                    yield (*path, "endpoints", index, "duty"), f"{where}.endpoints.{index}.duty: {text}"
        elif cluster.endpoints:
            yield from _bad_pd_duties(path, where, cluster, deployment.policy.kind)


def _bad_pd_duties(path: FieldPath, where: str, cluster: Cluster, policy: str) -> Iterator[tuple[FieldPath, str]]:
    duties = cluster.duties
    num_prefill = duties.count(Duty.PREFILL)
    if not any(duty.decodes for duty in duties):
        text = "every instance has duty prefill, so nothing decodes; give one duty decode or both"
        yield (*path, "endpoints"), f"{where}.endpoints: {text}"
    elif not any(duty.prefills for duty in duties) and policy != "naive":
        text = (
            "every instance has duty decode, so nothing prefills what is not offloaded; give one duty prefill or both"
        )
        yield (*path, "endpoints"), f"{where}.endpoints: {text}"
    if cluster.convertible and all(duty is Duty.BOTH for duty in duties):
        text = "every instance has duty both, and only prefill and decode are converted; give each one of these"
        yield (*path, "convertible"), f"{where}.convertible: {text}"
    if cluster.prefill_instances not in (None, num_prefill):
        text = f"{cluster.prefill_instances}, but {num_prefill} of the endpoints have duty: prefill"
        text += "; give as many of them that duty, or remove this field"
        yield (*path, "prefill_instances"), f"{where}.prefill_instances: {text}"


def _bad_names(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    taken: dict[str, str] = {}
    for cluster_name, cluster in deployment.clusters.items():
        for index, endpoint in enumerate(cluster.endpoints):
            path: FieldPath = ("clusters", cluster_name, "endpoints", index, "name")
            name, where = endpoint.instance_name(cluster_name, index), f"clusters.{cluster_name}.endpoints.{index}"
            if name in taken:
                yield path, f"{where}.name: {name} is the name of {taken[name]} already; give each its own"
            taken.setdefault(name, where)


def _bad_naive(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    for name, cluster in deployment.clusters.items() if deployment.policy.kind == "naive" else ():
        if cluster.prefill_instances and not cluster.endpoints:
            text = f"clusters.{name}.prefill_instances: policy naive prefills nothing here; remove it"
            yield ("clusters", name, "prefill_instances"), text


def _bad_policy(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    policy = deployment.policy
    if policy.kind in ("prfaas", "naive") and "routing_threshold_tokens" in policy.model_fields_set:
        choice = "finds the threshold itself" if policy.kind == "prfaas" else "offloads everything"
        text = f"policy.routing_threshold_tokens: kind {policy.kind} {choice}; remove it, or write kind: fixed"
        yield ("policy", "routing_threshold_tokens"), text
    if policy.kind != "prfaas" and policy.max_ttft is not None:
        text = f"policy.max_ttft: kind {policy.kind} expects no times; remove it, or write kind: prfaas"
        yield ("policy", "max_ttft"), text


def _bad_links(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    known: set[tuple[str, str]] = set()
    for index, link in enumerate(deployment.links):
        for end, name in (("from", link.from_), ("to", link.to)):
            if name not in deployment.clusters:
                text = f"links.{index}.{end}: there is no cluster {name!r}; there are {', '.join(deployment.clusters)}"
                yield ("links", index, end), text
        yield from _bad_ends(deployment, index, link)
        if (link.from_, link.to) in known:
            yield ("links", index), f"links.{index}: {link.from_} to {link.to} is given twice; remove one"
        known.add((link.from_, link.to))
    for name in deployment.clusters_of_role("prfaas"):
        if deployment.links and name not in {link.from_ for link in deployment.links}:
            text = f"clusters.{name}: no link starts here, so it would never be used; add one, or remove the cluster"
            yield ("clusters", name), text


def _bad_ends(deployment: Deployment, index: int, link: Link) -> Iterator[tuple[FieldPath, str]]:
    ends = (("from", link.from_, "prfaas"), ("to", link.to, "pd"))
    if any(name not in deployment.clusters for _, name, _ in ends):
        return
    roles = [deployment.clusters[name].role for _, name, _ in ends]
    if roles == ["pd", "prfaas"] and any((way.from_, way.to) == (link.to, link.from_) for way in deployment.links):
        return
    for (end, name, wanted), role in zip(ends, roles, strict=True):
        if role != wanted:
            text = f"cluster {name!r} has role {role}; a link goes from prfaas to pd, and a second one may lead back"
            yield ("links", index, end), f"links.{index}.{end}: {text}"


def _bad_addresses(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    taken = {f"{deployment.gateway.host}:{deployment.gateway.port}": "gateway"}
    for name, cluster in deployment.clusters.items():
        for index, endpoint in enumerate(cluster.endpoints):
            for kind in ("engine", "kvnode", "lanes"):
                path: FieldPath = ("clusters", name, "endpoints", index, kind)
                field = ".".join(str(part) for part in path)
                given = getattr(endpoint, kind)
                address = given.partition("://")[2] or given
                problem = _bad_address(given, needs_port=kind != "engine" or cluster.engine is not None)
                if problem is not None:
                    yield path, f"{field}: {problem}"
                elif address in taken:
                    yield path, f"{field}: {address} is taken by {taken[address]}; give each its own"
                taken.setdefault(address, field)
    yield from emulation_problems(deployment, taken)


def _bad_address(given: str, *, needs_port: bool) -> str | None:
    url = given if "://" in given else f"tcp://{given}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"{given!r}: {error}"
    if port == 0 or not parts.hostname:
        return f"{given!r} has no host or no usable port; write for example 127.0.0.1:8100"
    if port is None and needs_port:
        return f"{given!r} has no port; add one, for example {given}:8100"
    if parts.path or parts.query or parts.fragment or parts.username:
        return f"{given!r}: give host and port only, without a path such as /v1"
    return None


def _bad_kinds(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    for name, cluster in deployment.clusters.items():
        for index, endpoint in enumerate(cluster.endpoints):
            path: FieldPath = ("clusters", name, "endpoints", index, "kind")
            field = ".".join(str(part) for part in path)
            if cluster.engine is not None and endpoint.kind != cluster.engine.kind:
                text = (
                    f"{endpoint.kind}, but the cluster's engines are started as {cluster.engine.kind}; write the same"
                )
                yield path, f"{field}: {text}"
            elif deployment.emulation is not None and endpoint.kind != "emulated":
                text = f"{endpoint.kind}, but the file has `emulation`, which changes times and sizes; remove one"
                yield path, f"{field}: {text}"


def _bad_encryption(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    if deployment.transfer.encryption == "none" and deployment.transfer.tls is not None:
        text = "transfer.tls: encryption is none, so these files would not be used; remove one of the two"
        yield ("transfer", "tls"), text
