"""The network that draws vertebrae again: samples of single vertebrae, training, and the file that is bundled.

It sees a vertebra in the frame of its fitted shape (`segmamba.spine.vertebra_patch`), and is used by
`segmamba.inference.redraw`. What it brings is in Docs/experiments/degraded.md.
"""
