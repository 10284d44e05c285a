"""Run ``python -m segmamba.cli``."""

import sys

from segmamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
