"""`python -m trt_helper` and the command `trt-helper`."""

import sys
from pathlib import Path

from trt_helper.cli.main import main

if __name__ == "__main__":
    # `python -m` makes files of the working folder importable. None of them is run unless the user names it.
    if Path(sys.path[0]) == Path.cwd() and not Path(__file__).is_relative_to(Path.cwd()):
        del sys.path[0]
    main()
