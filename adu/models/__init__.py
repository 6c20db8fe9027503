"""The frozen CLIP, opened at the places where prompts and context go in. Knows no method."""
