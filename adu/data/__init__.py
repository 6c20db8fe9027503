"""Images: manifests of them, the files they lie in, decoded pixels and batches. Knows no model."""
