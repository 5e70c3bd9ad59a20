"""A simulated deployment around the shipped control core: seeded, without clock or I/O, with every fault on its menu.

`Scheduler.handle` runs as it is shipped; nodes hold the shipped ledger of landings. Everything else is simulated, and
nastier than the real thing. `python -m prfaas.testing.control_world --help` runs more seeds than the tests do.
"""
