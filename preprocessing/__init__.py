"""Raw folders to the unified store: files, geometry, intensities; no network."""
