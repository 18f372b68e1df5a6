"""`python -m steprl.cli`."""

import sys

from steprl.cli import main

if __name__ == "__main__":
    sys.exit(main())
