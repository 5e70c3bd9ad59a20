"""`python -m prfaas`."""

from prfaas.cli.main import main

main()
