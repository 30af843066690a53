"""Unified store -> episodes: crops of scans, augmented, and tasks of our own making."""
