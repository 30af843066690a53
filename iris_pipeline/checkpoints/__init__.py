"""Models on disk: weights with their memory bank, those that ship, means of several, and what they learnt from."""
