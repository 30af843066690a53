"""The network. Sees torch only; knows no files, no datasets, no geometry."""

from iris_pipeline.model.iris import (
    SIZES,
    STRIDE,
    Iris,
    IrisConfig,
    TaskTokens,
    build_config,
    build_iris,
    count_parameters,
)

__all__ = [
    "SIZES",
    "STRIDE",
    "Iris",
    "IrisConfig",
    "TaskTokens",
    "build_config",
    "build_iris",
    "count_parameters",
]
