"""`python -m prfaas`."""

from prfaas.cli.entry import main

main()
