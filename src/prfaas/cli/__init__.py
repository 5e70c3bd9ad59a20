"""The command line: options in, exit status out. Imports are inside commands, so that `--help` is quick."""
