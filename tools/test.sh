#!/usr/bin/env bash
# Every test, as two runs of pytest at a time: those of real engines, and all others. Each takes about half of the time.
# The argument is the virtual environment's bin folder. The second run's output follows the first one's.
set -uo pipefail
bin=$1
others=$(mktemp)
engines=(tests/integration/vllm tests/integration/test_demo.py)

# Jobs of their own (-m), so that a signal here reaches each once, as a word to its whole group.
set -m
ignored=("${engines[@]/#/--ignore=}")
"$bin/python" -m pytest "${ignored[@]}" -o cache_dir=.pytest_cache/others >"$others" 2>&1 &
beside_pid=$!
echo "tests: real engines here, all others beside them ($others)"
"$bin/python" -m pytest "${engines[@]}" &
here_pid=$!
set +m
stop() {
  kill -INT -- "-$beside_pid" "-$here_pid" 2>/dev/null
  wait
  tail -n 20 "$others"
  rm -f "$others"
  exit 130
}
trap stop INT TERM HUP
wait "$here_pid"
here=$?
wait "$beside_pid"
beside=$?
cat "$others"
rm -f "$others"
[ "$here" -eq 0 ] && [ "$beside" -eq 0 ]
