"""The HTTP service around the worker (``segmamba serve``). Only its command imports it."""
