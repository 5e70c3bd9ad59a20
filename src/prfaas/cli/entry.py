"""Where the console script begins: whatever happens, one sentence and an exit status, and no traceback of an interrupt,
a full disk or a closed pipe. It imports nothing before it can say so."""

import errno
import os
import sys

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main() -> None:
    """Entry point of the console script."""
    try:
        from prfaas.cli.main import app

        try:
            app()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _ends(130)
    except BrokenPipeError:
        _ends(1)
    except OSError as error:
        sys.stderr.write(f"{_what(error)}\n")
        _ends(1)


def _what(error: OSError) -> str:
    """What else a command writes carries its name, so without one it is standard output that is full."""
    if error.filename is None and error.errno in _OF_WRITING:
        return f"standard output cannot be written: {error.strerror}"
    return str(error) if error.filename is None else f"{error.filename}: {error.strerror or error}"


def _ends(status: int) -> None:
    """Without another word of what is still in the buffer of standard output."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(status)
