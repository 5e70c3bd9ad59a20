"""The command line: thin, and lazy in its imports, so that `--help` is quick."""
