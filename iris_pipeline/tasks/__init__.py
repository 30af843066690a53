"""What references become: tokens, and beside these a voxel head, grey evidence, tones and pieces."""
