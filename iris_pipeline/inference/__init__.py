"""Whole volumes through the network, and references through it: windows, one-shot, ensembles, retrieval, tuning."""
