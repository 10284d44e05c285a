"""Training on synthetic images that are rendered from label maps.

``synthesis`` has what every task shares, ``vertebrae`` and ``colorectal`` the samples of a task; ``loop`` trains as
``config`` says.
"""
