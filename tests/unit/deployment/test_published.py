"""What is published of the deployment file is what the code reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from prfaas.deployment.document import read_document, validated
from prfaas.deployment.load import read_deployment
from prfaas.deployment.model import Deployment, Endpoint, Link
from prfaas.deployment.schema import schema_text
from prfaas.deployment.units import parse_bandwidth, parse_bytes, parse_seconds
from prfaas.profiles.format import HardwareProfile, ModelProfile

DOCS = Path(__file__).parents[3] / "docs"


def test_the_json_schema_is_current() -> None:
    """Run `make docs` if this fails."""
    assert (DOCS / "deployment.schema.json").read_text(encoding="utf-8") == schema_text()


def fields(section: type[BaseModel]) -> set[str]:
    """Names of every field below a section."""
    names: set[str] = set()
    for name, info in section.model_fields.items():
        names.add(info.alias or name)
        for inner in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                names |= fields(inner)
    return names


def test_every_field_is_documented() -> None:
    """docs/deployment-file.md has a row for each."""
    page = (DOCS / "deployment-file.md").read_text(encoding="utf-8")
    for name in fields(Deployment) | fields(Endpoint) | fields(Link):
        assert re.search(rf"`([a-z_]+\.)*{name}[`.]", page), name


def test_documented_defaults_are_the_codes(tmp_path: Path) -> None:
    """The page's table of defaults, read back."""
    page = (DOCS / "deployment-file.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `((?:policy|transfer|gateway)\.[a-z_.]+)` \| `([^`]*)` \|", page, re.MULTILINE)
    defaults = Deployment.model_construct()
    parsers: dict[type, Any] = {int: parse_bytes, float: parse_seconds, str: str, bool: lambda text: text == "true"}
    assert len(rows) == 34
    for field, text in rows:
        value: Any = defaults
        for part in field.split("."):
            value = getattr(value, part)
        assert parsers[type(value)](text) == value, field


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_files_in_the_docs_are_valid(page: Path, tmp_path: Path) -> None:
    """Deployment files, hardware profiles and model profiles, where a page shows a whole one."""
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
        sections = yaml.safe_load(block) or {}
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        if "clusters" in sections and "model" in sections:
            assert read_deployment(file)
        elif "prefill" in sections and "model" in sections:
            assert validated(read_document(file), HardwareProfile)
        elif "kv_bytes" in sections or "hf_config" in sections:
            assert validated(read_document(file), ModelProfile)


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_bytes, "4096", 4096), (parse_bytes, 4096, 4096), (parse_bytes, "1.5KiB", 1536), (parse_bytes, "1 GB", 10**9),
        (parse_seconds, "20ms", 0.02), (parse_seconds, 2, 2.0), (parse_seconds, "5min", 300.0), (parse_seconds, "3µs", 3e-6),
        (parse_bandwidth, "100Gbps", 12.5e9), (parse_bandwidth, "8bps", 1.0),
    ],
)  # fmt: skip
def test_quantities(parse: Any, text: object, expected: float) -> None:
    """As people write them."""
    assert parse(text) == pytest.approx(expected)


@pytest.mark.parametrize("value", [True, None, [], "", "-1", "1e3", "ten", "5 apples", "1Gb", float("nan"), 1 + 2j])
@pytest.mark.parametrize("parse", [parse_bytes, parse_seconds, parse_bandwidth])
def test_what_is_no_quantity_is_refused(parse: Any, value: object) -> None:
    """With an example of one."""
    with pytest.raises(ValueError, match=r"expected a|write for example"):
        parse(value)
