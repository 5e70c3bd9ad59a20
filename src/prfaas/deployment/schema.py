"""The deployment file's JSON Schema, for editors and docs: `python -m prfaas.deployment.schema` prints it."""

from __future__ import annotations

import json
import sys

from prfaas.deployment.model import Deployment


def schema_text() -> str:
    """The schema as it is published in docs/deployment.schema.json."""
    schema = Deployment.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "PrfaaS deployment file"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
