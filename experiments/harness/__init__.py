"""What every experiment shares: options, run folder, training, scores, figures.

`application.py` is for what trains a net that one keeps, `study.py` for what measures something.
Nothing here knows of text, images or cells.
"""
