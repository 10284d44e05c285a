"""Train SegMamba-V2 on synthetic colorectal cancer: bowels from label maps, tumours grown in their walls.

``label_maps`` turns label maps into bowel maps, once on the CPU. At every step, on the device of the maps,
``parameters`` draws a sample's parameters, ``bowel`` and ``tumour`` build its tissues, ``ct`` renders a CT of them, and
``samples`` combines all this. ``render_scans`` and ``validation`` measure on whole scans, ``gallery`` draws a page of
samples.
"""
