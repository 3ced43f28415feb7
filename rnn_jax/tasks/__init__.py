"""Data: text as streams and padded batches."""
