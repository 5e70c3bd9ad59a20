#!/usr/bin/env bash
# Every test, as two runs of pytest at a time: those of real processes, and all others, which keep a second core busy.
# The argument is the virtual environment's bin folder. The second run's output follows the first one's.
set -uo pipefail
bin=$1
others=$(mktemp)

# A job of its own (-m), so that Ctrl-C here reaches it once, as a word to its whole group.
set -m
"$bin/python" -m pytest --ignore=tests/integration >"$others" 2>&1 &
pid=$!
set +m
stop() { kill -INT -- "-$pid" 2>/dev/null; wait "$pid"; tail -n 20 "$others"; rm -f "$others"; exit 130; }
trap stop INT TERM

echo "tests: real processes here, all others beside them ($others)"
"$bin/python" -m pytest tests/integration
here=$?
wait "$pid"
beside=$?
cat "$others"
rm -f "$others"
[ "$here" -eq 0 ] && [ "$beside" -eq 0 ]
