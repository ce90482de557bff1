"""``python -m layerbounds``."""

import sys

from layerbounds.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
