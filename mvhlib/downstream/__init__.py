"""What embeddings are good for beside expression: classes, retrieval, survival."""
