"""From images in a folder or bucket to a manifest."""
