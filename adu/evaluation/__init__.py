"""What a run is judged by: accuracy, Mem, For, H, and what the model looks at."""
