"""Does the forgetting hold? Looks at trained models beyond accuracy."""
