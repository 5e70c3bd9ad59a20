"""The deployment file's JSON Schema, for editors and for docs. `python -m prfaas.deployment.schema FILE` writes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from prfaas.deployment.model import Deployment


def schema_text() -> str:
    """The schema as it is published."""
    schema = Deployment.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "PrfaaS deployment file"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema_text(), encoding="utf-8")
