"""What runs the pipeline elsewhere."""
