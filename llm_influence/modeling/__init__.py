"""The model: backbone, adapter, embeddings and heads, saved and loaded as one folder."""
