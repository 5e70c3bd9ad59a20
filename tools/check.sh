#!/usr/bin/env bash
# Style, types and import rules: one command for people and CI. The argument is the virtual environment's bin folder.
set -euo pipefail
bin=$1
"$bin/ruff" format --check --quiet . || { echo "check: formatting differs; run 'make format'" >&2; exit 1; }
"$bin/ruff" check --quiet .
"$bin/mypy" --no-error-summary
"$bin/lint-imports" --no-cache | tail -n 6
