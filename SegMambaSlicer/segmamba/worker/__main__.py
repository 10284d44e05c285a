"""Run ``python -m segmamba.worker``."""

from segmamba.worker.server import main

if __name__ == "__main__":
    main()
