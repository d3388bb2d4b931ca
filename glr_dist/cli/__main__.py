"""`python -m glr_dist.cli` is the command `glr-dist`."""

import sys

from glr_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
