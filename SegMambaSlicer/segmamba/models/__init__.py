"""The list of models, and their checkpoints: where they are, come from and are checked. Needs no torch."""
