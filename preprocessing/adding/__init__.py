"""A folder of somebody's own scans becomes a dataset: looked through, guessed, described."""
