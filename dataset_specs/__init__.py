"""Data only: one YAML a dataset. The schema is in README.md beside this file; preprocessing/spec.py reads it."""
