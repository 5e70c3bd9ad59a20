"""Reading a deployment file. Whatever is wrong with it, the error names the line, the field, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from prfaas.deployment.document import MAX_FILE_BYTES, DeploymentError, Document, FieldPath, read_document, validated
from prfaas.deployment.model import Cluster, Deployment

__all__ = [
    "MAX_FILE_BYTES",
    "DeploymentError",
    "load_deployment",
    "read_deployment",
    "resolve_model_dir",
    "serving_problems",
]


def load_deployment(path: Path | str) -> Deployment:
    """A deployment that can be served: read, checked, complete. Raises DeploymentError, never anything else, whatever
    the file holds."""
    deployment, document = read_deployment(path)
    problems = serving_problems(deployment, document)
    if problems:
        raise DeploymentError("\n".join(problems))
    return deployment


def read_deployment(path: Path | str) -> tuple[Deployment, Document]:
    """A deployment whose parts fit together, to be planned or served, and the lines of its fields. What either use
    needs may be missing: see `serving_problems`, and the planner. Raises DeploymentError."""
    document = read_document(Path(path))
    deployment = validated(document, Deployment)
    problems = [f"{document.path}:{document.line_of(field)}: {text}" for field, text in _contradictions(deployment)]
    if problems:
        raise DeploymentError("\n".join(problems))
    return deployment, document


def serving_problems(deployment: Deployment, document: Document) -> list[str]:
    """What a deployment lacks to be started and served, one line each."""
    problems = [
        document.problem(("model", name), "missing; add it")
        for name in ("name", "path", "max_model_tokens")
        if getattr(deployment.model, name) is None
    ]
    for name, cluster in deployment.clusters.items():
        if not cluster.endpoints:
            problems.append(document.problem(("clusters", name, "endpoints"), "missing; add it"))
    if deployment.policy.kind not in ("fixed", "homogeneous"):
        text = (
            f"{deployment.policy.kind} can be planned, not served yet; write kind: fixed and the"
            " routing_threshold_tokens that 'prfaas plan' finds"
        )
        problems.append(document.problem(("policy", "kind"), text))
    return problems


def resolve_model_dir(deployment: Deployment, path: Path | str) -> Path:
    """The model's directory; a relative one starts at the deployment file. Raises DeploymentError if there is none."""
    directory = (Path(path).resolve().parent / deployment.served_model.path).resolve()
    if not (directory / "config.json").is_file():
        raise DeploymentError(f"{path}: model.path: {directory} has no config.json; give the model's directory")
    return directory


def _contradictions(deployment: Deployment) -> list[tuple[FieldPath, str]]:
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
        *_bad_policy(deployment),
        *_bad_naive(deployment),
        *_bad_links(deployment),
        *_bad_addresses(deployment),
        *_bad_encryption(deployment),
    ]


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
        for field in ("prefill_instances", "decode"):
            if getattr(cluster, field) is not None:
                yield (*path, field), f"{where}.{field}: a cluster with role prfaas only prefills; remove it"
    elif cluster.prefill_instances is not None and 0 < cluster.num_instances <= cluster.prefill_instances:
        text = f"{where}.prefill_instances: {cluster.prefill_instances} of {cluster.num_instances} leave none to decode"
        yield (*path, "prefill_instances"), text


def _bad_naive(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    for name, cluster in deployment.clusters.items() if deployment.policy.kind == "naive" else ():
        if cluster.prefill_instances:
            text = f"clusters.{name}.prefill_instances: policy naive prefills nothing here; remove it"
            yield ("clusters", name, "prefill_instances"), text


def _bad_policy(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    policy = deployment.policy
    if policy.kind in ("prfaas", "naive") and "routing_threshold_tokens" in policy.model_fields_set:
        choice = "finds the threshold itself" if policy.kind == "prfaas" else "offloads everything"
        text = f"policy.routing_threshold_tokens: kind {policy.kind} {choice}; remove it, or write kind: fixed"
        yield ("policy", "routing_threshold_tokens"), text


def _bad_links(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    known: set[tuple[str, str]] = set()
    for index, link in enumerate(deployment.links):
        for end, name, role in (("from", link.from_, "prfaas"), ("to", link.to, "pd")):
            cluster = deployment.clusters.get(name)
            field = f"links.{index}.{end}"
            if cluster is None:
                text = f"{field}: there is no cluster {name!r}; there are {', '.join(deployment.clusters)}"
                yield ("links", index, end), text
            elif cluster.role != role:
                text = f"{field}: cluster {name!r} has role {cluster.role}; a link goes from prfaas to pd"
                yield ("links", index, end), text
        if (link.from_, link.to) in known:
            yield ("links", index), f"links.{index}: {link.from_} to {link.to} is given twice; remove one"
        known.add((link.from_, link.to))
    for name in deployment.clusters_of_role("prfaas"):
        if deployment.links and name not in {link.from_ for link in deployment.links}:
            text = f"clusters.{name}: no link starts here, so it would never be used; add one, or remove the cluster"
            yield ("clusters", name), text


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


def _bad_encryption(deployment: Deployment) -> Iterator[tuple[FieldPath, str]]:
    if deployment.transfer.encryption == "none" and deployment.transfer.tls is not None:
        text = "transfer.tls: encryption is none, so these files would not be used; remove one of the two"
        yield ("transfer", "tls"), text
