"""Numbers from a mask and its truth: overlap, surfaces, volumes, lesions, and the rows that hold them."""
