"""From a volume to labels on its own grid: preprocessing, sliding window, post-processing."""
