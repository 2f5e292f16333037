"""`python -m trt_helper` and the command `trt-helper`."""

import os
import sys
from pathlib import Path

from trt_helper.errors import INTERRUPTED


def main() -> None:
    """Run the command line. Ctrl-C while it is being imported gives the same two lines as later.

    Python ends a process by SIGINT if the interrupt came while it executed a text, as dataclasses do when they are
    imported, even if it was handled; so 130 is given without coming to its end.
    """
    try:
        from trt_helper.cli.main import main as run  # noqa: PLC0415 - what takes time is imported inside of the try

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n  fix: run the same command again\n")
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    except SystemExit as leave:
        if leave.code != INTERRUPTED:
            raise
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    # `python -m` makes files of the working folder importable. None of them is run unless the user names it.
    if sys.path[0] and Path(sys.path[0]) == Path.cwd() and not Path(__file__).is_relative_to(Path.cwd()):
        del sys.path[0]
    main()
