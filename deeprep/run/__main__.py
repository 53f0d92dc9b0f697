"""`python -m deeprep.run`."""

import sys

from deeprep.run.command_line import main

if __name__ == "__main__":
    sys.exit(main())
