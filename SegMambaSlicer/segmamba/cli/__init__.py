"""The command line ``segmamba``."""
