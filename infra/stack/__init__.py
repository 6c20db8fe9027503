"""Real servers on this machine, as a search finds them in production: `stack.py` starts them."""
