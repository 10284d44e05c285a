"""From a network's voxelwise predictions to labelled, anatomically clean vertebrae. Does not need torch.

Arrays are (z, y, x) on a grid whose axes run up, to posterior and to the left; points are (z, y, x) in millimetres
from the centre of voxel (0, 0, 0). Levels are VerSe's numbers: C1-C7 = 1-7, T1-T12 = 8-19, L1-L6 = 20-25, sacrum = 26.
"""
