"""Scans and references of a user, from their files to masks on their own grids."""
