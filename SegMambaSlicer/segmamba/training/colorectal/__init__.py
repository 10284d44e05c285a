"""Training SegMamba-V2 on colorectal cancer that is synthesised: bowel from label maps, tumours grown in its wall.

``anatomy`` turns label maps into maps of the bowel (CPU, once). At every step, on the device where the maps lie,
``plan`` draws one sample's figures, ``bowel`` and ``tumour`` shape its tissues, ``painting`` makes a CT of them, and
``samples`` puts it all together. ``evaluate`` measures on whole scans, ``examples`` draws a page to look at.
"""
