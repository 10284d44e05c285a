"""Run ``python -m segmamba``."""

import sys

from segmamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
