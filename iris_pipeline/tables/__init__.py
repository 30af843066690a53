"""Rows of all runs -> result tables as Markdown, CSV and LaTeX."""
