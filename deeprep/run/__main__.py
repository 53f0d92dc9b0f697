"""`python -m deeprep.run`."""

import sys

from deeprep.run.session import main

if __name__ == "__main__":
    sys.exit(main())
