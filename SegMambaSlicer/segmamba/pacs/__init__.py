"""Batches that come from a PACS and go back to it (``segmamba batch dicomweb://...``), through DICOMweb."""
