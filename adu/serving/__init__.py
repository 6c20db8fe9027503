"""What leaves the house: a trained model as its users see it."""
