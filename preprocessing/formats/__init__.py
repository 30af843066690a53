"""File formats: what SimpleITK and nibabel read, and 3D Slicer's segmentations."""
