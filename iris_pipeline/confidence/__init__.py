"""How good a mask is likely to be, without its truth."""
