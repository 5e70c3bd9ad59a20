"""Settings of every test run."""

from __future__ import annotations

import signal

from hypothesis import settings

# Whoever starts the suite in the background of a shell script hands down an ignored SIGINT, and every process under test
# would inherit it: Ctrl-C tests would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline per example is a statement about the machine, which others may be using too. The examples are the same at
# every run; `--hypothesis-profile=default` draws new ones.
settings.register_profile("any-machine", deadline=None, derandomize=True)
settings.load_profile("any-machine")
