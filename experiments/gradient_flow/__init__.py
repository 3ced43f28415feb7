"""The figure that every lecture on recurrent networks draws by hand, measured.

    python -m experiments.gradient_flow

How large is dL/dh_t, going back from a loss at the last step T? It vanishes, explodes or is
preserved, with the recurrent weights, the activation, the cell and the initialisation; a bound on
the largest singular value says when it must vanish, and clipping bounds what an update does where
it explodes.
"""
