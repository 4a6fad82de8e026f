"""The command line as a user calls it, in this process."""

import contextlib
import io
import sys

from kdexport.commands.main import main


def call(*arguments: object) -> tuple[int, str]:
    """Exit code and stderr of `kdexport`, in this process."""
    said = io.StringIO()
    before = sys.argv
    sys.argv = ["kdexport", *map(str, arguments)]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        return int(end.code or 0), said.getvalue()
    finally:
        sys.argv = before
    return 0, said.getvalue()
