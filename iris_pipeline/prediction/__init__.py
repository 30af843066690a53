"""Many scans in, a folder of masks out, by any strategy."""
