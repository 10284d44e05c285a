"""Volumes and label maps: read from files and checked, and written. Needs no torch."""
