"""Training on synthetic images that are painted from real label maps.

``anatomy`` turns label maps into maps of tissue codes (CPU, once), ``synthesis`` paints CT-like images from them
(GPU, at every step), ``losses`` and ``loop`` train, ``evaluate`` measures on real volumes.
"""
