#!/usr/bin/env bash
# Style, types, import rules, and generated pages: one command for people and CI. The argument is the virtual
# environment's bin folder. Everything is checked, also after a failure.
set -uo pipefail
bin=$1
failed=0

check() {
  local name=$1
  shift
  if output=$("$@" 2>&1); then
    printf 'check: %-12s fine\n' "$name"
  else
    failed=1
    printf 'check: %-12s FAILED\n%s\n' "$name" "$output" >&2
  fi
}
current() { diff -u "$1" <("$bin/python" -m "$2") || { echo "$1 is not current; run 'make docs'"; return 1; }; }

check format "$bin/ruff" format --check --quiet . # 'make format' repairs it
check lint "$bin/ruff" check --quiet .
check types "$bin/mypy" --no-error-summary
check imports "$bin/lint-imports" --no-cache
check schema current docs/deployment.schema.json prfaas.deployment.schema
check wire "$bin/python" tools/wire_doc.py --check
check control "$bin/python" tools/control_doc.py --check
check contracts "$bin/python" tools/contract_doc.py --check
check metrics current docs/metrics.md prfaas.observe.metrics
exit "$failed"
