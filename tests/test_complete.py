"""Nothing public is without an oracle and without mutants; nothing runs without its row.

A new cell, gradient algorithm, loss, application or study fails here until it has them.
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_applications
import test_cells
import test_studies
from mutants import MUTANTS
from nets import CELLS

import experiments
import rnn_jax
from experiments.harness.application import Application
from experiments.harness.study import Study
from rnn_jax import gradients, interop, losses

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# What each function is compared with, that is not itself.
ORACLES = {
    "artbp": "test_unbiased.py::test_artbp_over_all_cuts",
    "bptt": "test_gradients.py::test_exact_ones_agree_with_the_loop",
    "check_gradients": "test_check_gradients.py::test_a_planted_error_is_found",
    "deer": "test_algorithms.py::test_deer_is_exact",
    "e_prop": "test_sparse.py::test_rflo_is_e_prop_on_leaky_units",
    "elementwise_rtrl": "test_algorithms.py::test_diagonal_and_complex_cells",
    "equilibria": "test_converged.py::test_equilibria_are_those_that_implicit_sees",
    "forward_gradient": "test_unbiased.py::test_the_mean_of_all_draws_is_the_gradient",
    "implicit": "test_sparse.py::test_implicit_is_backpropagation_through_a_long_rest",
    "kf_rtrl": "test_unbiased.py::test_the_mean_of_all_draws_is_the_gradient",
    "lstm_1997": "test_sparse.py::test_the_gradient_of_1997_is_cut_by_hand",
    "newton": "test_converged.py::test_states_of_any_size",
    "ok": "test_unbiased.py::test_the_mean_of_all_draws_is_the_gradient",
    "randomized_telescope": "test_unbiased.py::test_telescope_over_all_horizons",
    "rflo": "test_sparse.py::test_rflo_is_e_prop_on_leaky_units",
    "rtrl": "test_algorithms.py::test_rtrl_is_exact",
    "snap": "test_sparse.py::test_snap_is_exact_once_all_is_reached",
    "table": "test_algorithms.py::test_the_register",
    "truncated_bptt": "test_gradients.py::test_each_loss_reaches_back_as_far_as_it_should",
    "uoro": "test_unbiased.py::test_the_mean_of_all_draws_is_the_gradient",
    "binary_cross_entropy": "test_losses.py::test_mean_over_valid_entries",
    "cross_entropy": "test_losses.py::test_mean_over_valid_entries",
    "squared_error": "test_losses.py::test_mean_over_valid_entries",
    "activation_penalty": "test_losses.py::test_penalties_are_means_over_units_and_valid_steps",
    "slowness_penalty": "test_losses.py::test_penalties_are_means_over_units_and_valid_steps",
    "as_linen_cell": "test_interop_flax.py::test_cells_inside_their_loops",
    "as_linen_module": "test_interop_flax.py::test_modules_give_the_bits_of_unroll",
    "as_nnx_cell": "test_interop_flax.py::test_cells_inside_their_loops",
    "as_nnx_module": "test_interop_flax.py::test_modules_give_the_bits_of_unroll",
    "dump": "test_peers.py::test_same_outputs_states_and_gradients",
    "export": "test_interop_deploy.py::test_a_file_runs_in_a_process_without_us",
    "from_cudnn": "test_interop_torch.py::test_the_vector_of_cudnn",
    "from_keras": "test_interop_keras.py::test_equals_keras",
    "from_onnx": "test_interop_onnx.py::test_equals_onnxruntime",
    "from_safetensors": "test_interop_torch.py::test_safetensors",
    "from_torch": "test_interop_torch.py::test_equals_pytorch",
    "identify": "test_interop_torch.py::test_identify",
    "load": "test_peers.py::test_same_outputs_states_and_gradients",
    "register": "test_interop_deploy.py::test_our_own_types_are_written_and_read",
    "to_cudnn": "test_interop_torch.py::test_the_vector_of_cudnn",
    "to_keras": "test_interop_keras.py::test_equals_keras",
    "to_onnx": "test_interop_onnx.py::test_a_net_runs_in_onnxruntime",
    "to_safetensors": "test_interop_torch.py::test_safetensors",
    "to_torch": "test_interop_torch.py::test_equals_pytorch",
    "wrap_equinox": "test_interop_flax.py::test_a_cell_of_another_library_is_a_cell",
    "wrap_haiku": "test_interop_flax.py::test_a_cell_of_another_library_is_a_cell",
    "wrap_linen": "test_interop_flax.py::test_a_cell_of_another_library_is_a_cell",
    "wrap_nnx": "test_interop_flax.py::test_a_cell_of_another_library_is_a_cell",
}


def functions(module: Any) -> dict[str, Callable[..., Any]]:
    """The public functions of a module, and what it re-exports from below itself."""
    found = inspect.getmembers(module, inspect.isfunction)
    own = {n: f for n, f in found if f.__module__.startswith(module.__name__)}
    return {name: f for name, f in own.items() if not name.startswith("_")}


FUNCTIONS = functions(gradients) | functions(losses) | functions(interop)


def source(function: Callable[..., Any]) -> Path:
    return Path(inspect.getfile(inspect.unwrap(function))).relative_to(ROOT)


def without_mutants(named: dict[str, Callable[..., Any]]) -> list[str]:
    """Those in whose own code nothing is broken, nor by a row whose test or name is theirs."""
    return [
        name
        for name, function in named.items()
        if not any(
            m.path == str(source(function))
            and (m.old in inspect.getsource(function) or mentions(name, m))
            for m in MUTANTS
        )
    ]


def mentions(name: str, mutant: Any) -> bool:
    cases = (
        case for test in mutant.tests for case in test.partition("[")[2].rstrip("]").split("-")
    )
    return mutant.name.split(":")[-2].strip() == name or name in cases


def without_oracle(named: dict[str, Any], oracles: dict[str, str]) -> list[str]:
    """Those without a test, or whose test is not there or does not name them."""
    missing = []
    for name in named:
        file, _, test = oracles.get(name, "absent.py::").partition("::")
        text = (TESTS / file).read_text(encoding="utf-8") if (TESTS / file).exists() else ""
        tests = [n.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        if test not in tests or (name not in text and "REGISTER" not in text):
            missing.append(name)
    return missing


def contracts(kind: type) -> set[str]:
    """The modules of the experiments that have an application, or a study."""
    names = {Application: "APPLICATION", Study: "STUDY"}
    found = set()
    for info in pkgutil.walk_packages(experiments.__path__, "experiments."):
        if ".harness" in info.name or info.name.endswith("__main__"):
            continue
        text = Path(importlib.util.find_spec(info.name).origin or "").read_text(encoding="utf-8")
        assigned = {
            t.id
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for t in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(t, ast.Name)
        }
        if names[kind] in assigned:
            found.add(info.name.removeprefix("experiments."))
    return found


def test_every_algorithm_and_loss_has_an_oracle() -> None:
    assert {e.algorithm.__name__ for e in gradients.REGISTER.values()} <= set(FUNCTIONS)
    assert without_oracle(FUNCTIONS, ORACLES) == []
    assert set(ORACLES) == set(FUNCTIONS), "a row of ORACLES for a function that is gone"


def test_every_algorithm_and_loss_has_mutants() -> None:
    assert without_mutants(FUNCTIONS) == []


def test_every_cell_has_an_oracle_and_mutants() -> None:
    assert set(rnn_jax.ALL_CELLS) <= set(test_cells.CASES)
    assert set(rnn_jax.ALL_CELLS) <= set(CELLS)
    assert without_mutants(dict(rnn_jax.ALL_CELLS)) == []


@pytest.mark.parametrize(
    ("kind", "rows"), [(Application, test_applications.ROWS), (Study, test_studies.ROWS)]
)
def test_every_experiment_has_its_row(kind: type, rows: dict[str, Any]) -> None:
    assert contracts(kind)
    assert contracts(kind) - set(rows) == set()


def test_what_is_missing_is_found() -> None:
    def new(cell: Any, loss: Any) -> None:
        """A stranger."""

    assert without_mutants({"new": new}) == ["new"]
    assert without_oracle({"new": new}, {}) == ["new"]
    assert without_oracle({"new": new}, {"new": "test_losses.py::test_absent"}) == ["new"]
    assert without_oracle({"new": new}, {"new": "test_absent.py::test_absent"}) == ["new"]
