"""Data: synthetic tasks, text as streams, batches of examples."""
