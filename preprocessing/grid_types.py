"""Shapes, spacings and boxes as types, each in the order (z,y,x)."""

from __future__ import annotations

Shape = tuple[int, int, int]
"""Voxels along each axis, or the place of one."""
Triple = tuple[float, float, float]
"""Lengths (mm) along each axis, or shares of an edge."""
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Half-open bounds ((z0,z1),(y0,y1),(x0,x1))."""
Region = tuple[slice, slice, slice]
"""The same as slices of an array."""
