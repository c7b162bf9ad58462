"""`python -m engines` is `ptqd-run`."""

from engines.cli import main

if __name__ == "__main__":
    main(prog_name="ptqd-run")
