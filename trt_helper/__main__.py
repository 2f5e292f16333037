"""`python -m trt_helper` and the command `trt-helper`."""

from trt_helper.cli.main import main

if __name__ == "__main__":
    main()
