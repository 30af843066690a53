"""Our cases and splits as a raw dataset of nnU-Net."""
