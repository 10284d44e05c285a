"""The sections of the panel: each is given the widgets, and does one thing with them."""
