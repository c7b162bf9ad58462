"""`python -m ptqd_export` is `ptqd-export`."""

from ptqd_export.cli import main

if __name__ == "__main__":
    main(prog_name="ptqd-export")
