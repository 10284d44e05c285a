"""The other end of a server (``segmamba serve``): a volume goes there, the result comes back. Needs no torch."""
