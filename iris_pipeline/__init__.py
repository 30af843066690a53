"""Unified store to model, masks and tables."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("iris-pipeline")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"
