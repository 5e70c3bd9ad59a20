"""Reading a deployment file. Whatever is wrong with it, the error names the line, the field, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from prfaas.deployment.contradictions import contradictions
from prfaas.deployment.document import MAX_FILE_BYTES, DeploymentError, Document, read_document, validated
from prfaas.deployment.model import Deployment

#: The tokenizer of emulated engines whose deployment file names no model directory: a token is a byte of UTF-8.
BYTES_MODEL: Final = Path(__file__).parent / "bytes_model"

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
    problems = [f"{document.path}:{document.line_of(field)}: {text}" for field, text in contradictions(deployment)]
    if problems:
        raise DeploymentError("\n".join(problems))
    return deployment, document


def serving_problems(deployment: Deployment, document: Document) -> list[str]:
    """What a deployment lacks to be started and served, one line each."""
    problems = [
        document.problem(("model", name), "missing; add it")
        for name in ("name", "path", "max_model_tokens")
        if getattr(deployment.model, name) is None and not (name == "path" and deployment.is_emulated)
    ]
    for name, cluster in deployment.clusters.items():
        if not cluster.endpoints:
            problems.append(document.problem(("clusters", name, "endpoints"), "missing; add it"))
    return problems


def resolve_model_dir(deployment: Deployment, path: Path | str) -> Path:
    """The model's directory; a relative one starts at the deployment file. An emulated deployment that names none has
    the one that comes with PrfaaS. Raises DeploymentError if there is none."""
    if deployment.model.path is None and deployment.is_emulated:
        return BYTES_MODEL
    directory = (Path(path).resolve().parent / str(deployment.served_model.path)).resolve()
    if not (directory / "config.json").is_file():
        raise DeploymentError(f"{path}: model.path: {directory} has no config.json; give the model's directory")
    return directory
