"""Tissue labels and labels of colorectal samples, in addition to `segmamba.training.synthesis.tissue_labels`."""

from __future__ import annotations

from segmamba.training.synthesis.tissue_labels import COLON, SMALL_BOWEL, STOMACH, organ

# In a bowel map.
RECTUM, MESENTERY = 154, 155
DUODENUM = organ(19)
LARGE = (COLON, RECTUM)
OTHER_BOWEL = (STOMACH, SMALL_BOWEL, DUODENUM)
# In a sample, after its bowel has been shaped: the colon's and the rectum's voxels are wall or lumen.
WALL, LUMEN, OTHER_WALL, OTHER_LUMEN, TUMOUR, NECROSIS, NODE, VESSEL, DIVERTICULUM = range(160, 169)
# A network's labels besides 0, the background, as in the manifest.
TUMOUR_LABEL, COLON_LABEL, RECTUM_LABEL = range(1, 4)
LABELS = {"tumour": TUMOUR_LABEL, "colon": COLON_LABEL, "rectum": RECTUM_LABEL}
