"""The error surface of one unit, and descents on it."""

from typing import Any
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import clipping


def test_the_clipped_descend_and_the_others_are_thrown_out() -> None:
    with jax.enable_x64(True):
        numbers: Any = clipping.measure(clipping.QUICK, MagicMock())
    clipped, unclipped = numbers["clipped"], numbers["unclipped"]
    assert clipped["solved"] > unclipped["solved"] + 0.1
    assert clipped["thrown out"] == 0 < unclipped["thrown out"]
    assert clipped["errors"][-1] < 0.01 < unclipped["errors"][-1]
    for path in (clipped["path"], unclipped["path"]):
        assert tuple(path[0]) == clipping.START
        assert len(path) == 201
    moves = np.linalg.norm(np.diff(clipped["path"], axis=0), axis=-1)
    assert 0.1 * (1 - 1e-9) < moves.max() <= 0.1 * (1 + 1e-9)
    unclipped["solved"] = clipped["solved"]
    assert "helps, NOT reproduced" in clipping.summary(numbers, clipping.QUICK)


def test_what_has_become_of_descents_is_judged_at_their_ends() -> None:
    start, solved, near, far = (4.5, -3.0), (9.9, -6.4), (1.1, 0.9), (10.1, -3.0)
    points = jnp.array([[far, start], [start, solved], [far, near], [start, far], [near, start]])
    errors = jnp.array([[0.0, 0.0], [0.5, 0.001], [0.0, 0.5], [0.0, 0.5], [0.0, 0.02]])
    found = clipping.outcome(points, errors)
    assert found["solved"] == found["thrown out"] == 0.25
    np.testing.assert_array_equal(found["path"], points[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("w", "b"), [(5.2, -2.4), (5.0, -2.6), (6.0, -3.5)])
def test_the_error_surface_is_the_published_formula(w: float, b: float) -> None:
    def error(w: float, b: float) -> float:
        x = 0.5
        for _ in range(50):
            x = w / (1 + np.exp(-x)) + b
        return (1 / (1 + np.exp(-x)) - 0.7) ** 2

    value, slopes = jax.jit(clipping.error_and_gradient)(jnp.array(w), jnp.array(b))
    assert float(value) == pytest.approx(error(w, b), rel=1e-9)
    e = 1e-6
    numeric = [error(w + e, b) - error(w - e, b), error(w, b + e) - error(w, b - e)]
    np.testing.assert_allclose(slopes, np.array(numeric) / (2 * e), rtol=1e-3, atol=1e-9)
