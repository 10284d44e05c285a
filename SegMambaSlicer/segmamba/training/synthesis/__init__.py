"""Synthetic images from tissue label maps, shared by all tasks."""
