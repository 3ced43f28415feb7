"""Data: batches of examples, text as streams, synthetic tasks of memory."""

from rnn_jax.tasks import batches, memory, text, text_file

__all__ = ["batches", "memory", "text", "text_file"]
