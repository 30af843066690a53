"""Masks against their truth: of a folder, to calibrate confidence, and of references among themselves."""
