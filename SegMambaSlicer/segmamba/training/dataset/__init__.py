"""Training on labelled images: from a folder in one of the field's layouts to a network.

`layout` reads what is there, `checks` refuses what cannot be trained on, `fingerprint` measures it and `plan` decides
grid, intensities, patch and batch; `cache` holds the cases on that grid, `source` draws augmented samples from them,
`task` is what the training loop asks, and `train` does it all.
"""
