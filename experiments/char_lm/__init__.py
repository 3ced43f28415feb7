"""A character language model, trained by truncated backpropagation through time.

    python -m experiments.char_lm                            # on Python's standard library
    python -m experiments.char_lm --text FILE_OR_FOLDER
    python -m experiments.char_lm --resume RUN
    python -m experiments.char_lm generate RUN --prompt "def "

The text is cut into contiguous streams, one for each row of the batch. Every update reads the next
window of each stream; the hidden state is carried from window to window for ever, the gradient
stops at the border of the window.
"""
