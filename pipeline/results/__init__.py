"""What a search keeps and shows: the output folder or bucket, summary, pictures, the live view."""
