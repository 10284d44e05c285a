"""Synthetic images from maps of tissue labels: what the training of every task shares."""
