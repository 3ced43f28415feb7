"""Data: batches of examples, text as streams, synthetic tasks of memory."""
