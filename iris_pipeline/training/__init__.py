"""Episodes and a network -> a trained model."""
