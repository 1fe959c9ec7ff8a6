"""`python -m openedm`: the command line."""

import sys

from openedm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
