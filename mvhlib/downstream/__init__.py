"""Downstream tasks of embeddings beside expression: classes, retrieval, survival."""
