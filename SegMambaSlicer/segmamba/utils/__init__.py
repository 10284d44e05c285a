"""Small helpers without knowledge of medical images."""
