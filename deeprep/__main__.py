"""`python -m deeprep` is `deeprep`."""

import sys

from deeprep.cli import main

if __name__ == "__main__":
    sys.exit(main())
