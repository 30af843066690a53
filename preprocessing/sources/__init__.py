"""Where voxels come from: files, folders and what is made of several, each a small value that can be read."""
