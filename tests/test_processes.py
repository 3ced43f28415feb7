"""Two processes that train together, over the loopback: the numbers of one; what may go wrong."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import test_mesh as two

import rnn_jax
from experiments.harness import run_folder
from rnn_jax import processes, train
from rnn_jax.checkpoint import Checkpoints
from rnn_jax.tasks.batches import Batches

TESTS = Path(__file__).parent
TOY = "import toy; raise SystemExit(toy.APPLICATION.main())"
BOUND = 60  # seconds, within which each fault has its outcome


pytestmark = pytest.mark.skipif(
    sys.platform not in ("linux", "darwin"),
    reason="gloo, by which CPU processes add up, is for Linux and macOS",
)


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def started(words: list[Any], **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": f"{TESTS.parent}:{TESTS}",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "Agg",
    }
    words = [sys.executable, "-u", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment, **options)


def pair(role: str, folder: Path | str = "", n: int = 2) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [started([TESTS / "pair.py", role, folder, port, n, i]) for i in range(n)]


def ended(children: list[subprocess.Popen[str]], within: float = 4 * BOUND) -> list[Any]:
    """What each has printed, as (code, output, errors)."""
    until, found = time.monotonic() + within, []
    try:
        for child in children:
            out, err = child.communicate(timeout=max(1, until - time.monotonic()))
            found.append((child.returncode, out, err))
    finally:
        for child in children:
            child.kill()
            child.communicate()
    return found


def said(children: list[subprocess.Popen[str]]) -> list[list[dict[str, Any]]]:
    """The JSON lines of each, all of which ended well."""
    results = ended(children)
    for code, _, err in results:
        assert code == 0, err[-3000:]
    return [json_lines(out) for _, out, _ in results]


def json_lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def flat(state: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])


# ---- the library


def test_what_one_process_knows_all_know() -> None:
    ours, theirs = said(pair("laws"))
    for rows in (ours, theirs):
        assert (rows[0]["first"], rows[0]["each"], rows[0]["largest"]) == ({"of": 0}, [0, 3], 5)
    assert [rows[0]["together"] for rows in (ours, theirs)] == [0, 3]
    messages = {row["where"]: (row["kind"], row["message"]) for row in ours[1:]}
    assert messages == {
        "first": ("FileNotFoundError", "no such run"),
        "each": ("ValueError", "process 1: bad"),
        "together": ("Elsewhere", "process 1: 'k'"),
    }
    messages = {row["where"]: (row["kind"], row["message"]) for row in theirs[1:]}
    assert messages == {
        "first": ("FileNotFoundError", "process 0: no such run"),
        "each": ("ValueError", "bad"),
        "together": ("KeyError", "'k'"),
    }


def test_one_process_alone_needs_nobody() -> None:
    assert processes.first(lambda: 3) == 3
    assert processes.each(lambda: [1]) == [[1]]
    assert processes.together(lambda: {1}) == {1}
    assert int(processes.largest(4)) == 4
    with pytest.raises(ValueError, match=r"^bad$"):
        processes.together(_bad)


def _bad() -> int:
    raise ValueError("bad")


def test_two_processes_are_one_but_for_the_order_of_sums() -> None:
    """Replicated and split params, with dropout; and each process reading its own part."""
    found = said(pair("trains"))
    assert found[0] == found[1]
    params = {row["kind"]: row["params"] for row in found[0]}
    one = flat(two.trained(None))
    with jax.enable_x64(True):
        limit = two.bound(np.float32)
    assert np.abs(params["batch"] - one).max() <= limit
    assert np.abs(params["units"] - one).max() <= limit
    run = train.make_train(two.loss_of(two.net()), None, two.OPTIMIZER, steps_per_call=10)
    whole = train.fit(run, two.start(two.net()), Batches(two.examples(), two.B), steps=20)
    assert np.abs(params["host"] - flat(whole)).max() <= limit
    assert params["position"] == [20, two.B // 2]


def test_any_number_saves_and_any_other_restores(tmp_path: Path) -> None:
    """1 process, 2, 2 with two devices each and params split by units, then 1 again."""
    whole = two.trained(None, steps=40)
    run = two.trained(None, steps=10)
    Checkpoints(tmp_path).save(run)
    for role, begun in (("goes on", 10), ("more devices", 20)):
        for row in said(pair(role, tmp_path)):
            assert (row[0]["begun"], row[0]["saved"], row[0]["best"]) == (begun, begun + 10, 20)
    like = two.start(two.net())
    checkpoints = Checkpoints(tmp_path)
    state = checkpoints.restore(like=like)
    assert checkpoints.last.position == {"at": 20}
    options = {"steps_per_call": 10}
    again = train.make_train(two.loss_of(two.net()), two.batch_at, two.OPTIMIZER, **options)
    state = train.fit(again, state, two.examples(), steps=40)
    assert two.apart(state.params, whole.params) <= 1e-5
    assert two.bits((state.key, state.carry[0].key)) == two.bits((whole.key, whole.carry[0].key))


def test_a_signal_or_a_deadline_of_one_stops_all_at_the_same_step() -> None:
    first, second = said(pair("stops"))
    assert first == second
    signalled, too_late, late = first
    assert too_late == {"asked": True}
    assert signalled["received"] == signal.SIGTERM
    assert signalled["asked"] is True
    assert signalled["step"] > 0
    assert late["step"] == 10  # one chunk was under way


def test_a_mesh_of_any_kind(tmp_path: Path) -> None:
    first, second = said(pair("any mesh", tmp_path))
    assert first == second
    assert first[0]["step"] == 10
    assert first[0]["spec"] == ["P('batch',)"]
    expected = flat(two.trained(None, steps=10))
    np.testing.assert_allclose(first[0]["params"], expected, atol=1e-5)


def test_time_over_two_processes() -> None:
    first, second = said(pair("over time"))
    assert first == second
    cell, xs = two.net(), two.examples()[0][: two.B, :6]
    params = cell.init(jax.random.key(1))

    def loss(params: Any) -> Any:
        run = jax.vmap(lambda xs: rnn_jax.unroll(cell, params, None, xs)[1])
        return (run(xs) ** 2).sum()

    expected = np.concatenate([np.ravel(g) for g in jax.tree.leaves(jax.grad(loss)(params))])
    np.testing.assert_allclose(first[0]["grads"], expected, rtol=1e-4, atol=1e-5)


def test_who_waits_says_for_whom() -> None:
    (code, out, err), (code_1, _, err_1) = ended(pair("alone"))
    assert (code, code_1) == (0, 0)
    assert json_lines(out) == [{"each": [1, 1]}]
    assert "process 0 has waited 1 s for the others, each of which must make the same calls" in err
    assert "has waited" not in err_1


def test_errors_of_the_first_process_are_those_of_all(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(two.trained(None, steps=10))
    first, second = said(pair("refuses", tmp_path))
    for mine, theirs in zip(first, second, strict=True):
        assert theirs["kind"] == mine["kind"]
        assert theirs["message"] == f"process 0: {mine['message']}"
    assert [row["kind"] for row in first] == ["ValueError", "FileNotFoundError", "ValueError"]
    assert "make room" not in first[1]["message"]
    assert Checkpoints(tmp_path).last.step == 10


# ---- kill -9


def saved_by(out: str) -> list[int]:
    return [row["saved"] for row in json_lines(out) if "saved" in row]


def kill_one_or_both(folder: Path, aim: str, rng: random.Random, last: int) -> int:
    """Starts two, kills some of them, and says what was saved by then."""
    children = pair("saves for ever", folder)
    lines: list[str] = []
    assert children[0].stdout is not None
    for line in children[0].stdout:
        lines.append(line)
        if saved_by(line):
            break
    begun = next(row["begun"] for row in json_lines("".join(lines)) if "begun" in row)
    assert begun == last  # nothing was lost but the steps since the last save
    time.sleep(rng.uniform(0, 0.5))
    if "save" in aim:
        until = time.monotonic() + 5
        while not list((folder / "there").glob("*.saving")) and time.monotonic() < until:
            pass
    victims = {"first": [0], "second": [1], "both": [0, 1]}[aim.split()[0]]
    for i in victims:
        children[i].send_signal(signal.SIGKILL)
    begun_to_wait = time.monotonic()
    results = ended(children, within=BOUND)
    assert time.monotonic() - begun_to_wait < BOUND
    for i, (code, _, err) in enumerate(results):
        assert code != 0
        if i not in victims:
            assert re.search("another process has ended|another task died", err), err
    lines.append(results[0][1])
    steps = saved_by("".join(lines))
    reader = Checkpoints(folder / "there", read_only=True)
    assert reader.last.step in (steps[-1], steps[-1] + 2)  # killed before it could say so
    reader.restore(like=two.start(two.net()))  # whole, and its checksums are right
    return reader.last.step


def kill_often(folder: Path, aims: list[str], rng: random.Random) -> None:
    last = 0
    for aim in aims:
        last = kill_one_or_both(folder, aim, rng, last)
    assert last > 2 * len(aims)


@pytest.mark.slow
def test_one_of_two_is_killed_during_a_save(tmp_path: Path) -> None:
    kill_often(tmp_path, ["first save", "second"], random.Random(0))


@pytest.mark.slow
def test_killed_20_times(tmp_path: Path) -> None:
    aims = [f"{who} {when}" for who in ("first", "second", "both") for when in ("save", "train")]
    aims = [*(aims * 3), "both save", "first save"]
    random.Random(1).shuffle(aims)
    assert len(aims) == 20
    kill_often(tmp_path, aims, random.Random(2))


# ---- the command line


def commands(
    folder: Path, *options: Any, port: int | None = None, each: Any = ((), ()), code: str = TOY
) -> list[subprocess.Popen[str]]:
    """Two processes of the toy, in folders of their own."""
    port, found = port or free_port(), []
    for i, more in enumerate(each):
        mine = folder / str(i)
        mine.mkdir(exist_ok=True)
        place = ["--coordinator", f"localhost:{port}", "--processes", 2, "--process", i]
        found.append(started(["-c", code, *place, *options, *more], cwd=mine))
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return run_folder.rows_of(run)


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 3 * BOUND
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def assert_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("loss", "validation_loss"):
        got, want = ([row[name] for row in both if name in row] for both in (found, expected))
        np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one device."""
    folder = tmp_path_factory.mktemp("alone")
    (code, _, err), *_ = ended([started(["-c", TOY, "--quick", "--run", "r"], cwd=folder)])
    assert code == 0, err
    return folder / "r"


@pytest.mark.slow
def test_two_devices_from_the_command_line(alone: Path, tmp_path: Path) -> None:
    """The run goes on with another number of them."""
    options = ["--quick", "--run", "r", "--devices", 2, "--steps", 30, "--evaluations", 2]
    (code, _, err), *_ = ended([started(["-c", TOY, *options], cwd=tmp_path)])
    assert code == 0, err
    assert json.loads((tmp_path / "r/run.json").read_text())["options"].get("devices") is None
    more = ["--resume", "r", "--steps", 60, "--devices", 4]
    (code, _, err), *_ = ended([started(["-c", TOY, *more], cwd=tmp_path)])
    assert code == 0, err
    options = ["--quick", "--run", "w", "--devices", 2]
    (code, _, err), *_ = ended([started(["-c", TOY, *options], cwd=tmp_path)])
    assert code == 0, err
    assert_alike(rows(tmp_path / "w"), rows(alone))


@pytest.mark.slow
def test_two_processes_from_the_command_line(alone: Path, tmp_path: Path) -> None:
    """Process 0 alone prints and writes; SIGTERM to the other one stops both, and it goes on."""
    both = commands(tmp_path, "--quick", "--run", "r")
    (code, out, err), (code_1, out_1, err_1) = ended(both)
    assert (code, code_1) == (0, 0), err + err_1
    assert "best validation loss" in out
    assert not [line for line in out_1.splitlines() if "Gloo" not in line]
    assert "error" not in err_1
    assert_alike(rows(tmp_path / "0/r"), rows(alone))
    assert sorted(p.name for p in (tmp_path / "0/r").iterdir()) == sorted(
        p.name for p in alone.iterdir()
    )
    assert not list((tmp_path / "1").iterdir())

    both = commands(tmp_path, "--quick", "--steps", 10**6, "--run", "s", "--save-every", 100)
    wait_for(lambda: len(rows(tmp_path / "0/s")) > 2)
    both[1].send_signal(signal.SIGTERM)
    (code, out, err), (code_1, _, err_1) = ended(both, within=BOUND)
    assert (code, code_1) == (0, 0), err + err_1
    step = int(re.search(r"stopped by a signal to another process after step (\d+)", out)[1])
    saved = Checkpoints(tmp_path / "0/s/checkpoints", read_only=True).last.step
    assert saved == step == rows(tmp_path / "0/s")[-1]["step"]
    both = commands(tmp_path, "--resume", "s", "--steps", step + 20)
    (code, out, err), (code_1, _, err_1) = ended(both)
    assert (code, code_1) == (0, 0), err + err_1
    assert rows(tmp_path / "0/s")[-1]["step"] == step + 20


MEETING = {
    "nobody comes": ([0], {}, 1, "not all 2 processes have come within 3 s"),
    "nobody is there": ([1], {}, 1, "process 0 does not answer"),
    "twice the same": ([0, 0], {}, 2, "cannot listen"),
}


@pytest.mark.parametrize("case", MEETING)
def test_who_cannot_meet_says_so(case: str, tmp_path: Path) -> None:
    who, _, code, message = MEETING[case]
    port = free_port()
    options = ["--quick", "--coordinator", f"localhost:{port}", "--processes", 2]
    options += ["--join-seconds", 3]
    children = [started(["-c", TOY, *options, "--process", i], cwd=tmp_path) for i in who]
    results = ended(children, within=BOUND)
    errors = "".join(err for _, _, err in results)
    assert message in errors
    assert "Check failure stack trace" not in errors
    assert code in [code for code, _, _ in results]
    assert not list(tmp_path.iterdir())


def test_nobody_says_where_to_meet(tmp_path: Path) -> None:
    child = started(["-c", TOY, "--quick", "--coordinator", "auto"], cwd=tmp_path)
    (code, _, err), *_ = ended([child], BOUND)
    assert code == 2
    assert "neither SLURM, Kubernetes nor JAX_COORDINATOR_ADDRESS says where" in err
    assert not list(tmp_path.iterdir())


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        (code, _, err), *_ = ended(commands(tmp_path, port=port, each=((),)), BOUND)
    assert code == 2
    assert err.startswith("error: --coordinator localhost:")
    assert "cannot listen there" in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("each", "message"),
    [
        ((("--data", "a"), ("--data", "a")), "process 1 has other data than process 0"),
        ((("--data", "b"), ("--data", "b")), "process 1: "),
        (((), ("--batch", "32")), "process 1 has other --batch than process 0"),
        (((), ("--processes", "3")), "--processes: process 1 got 3, process 0 got 2"),
        ((("--resume", "x"), ("--resume", "x")), "no run of toy"),
        ((("--run", "0"), ("--run", "0")), "0 exists and is not overwritten"),
        ((("--batch", "15"), ("--batch", "15")), "--batch: got 15, expected a multiple of 2"),
    ],
)
def test_bad_input_of_one_ends_both_in_one_line(each: Any, message: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        np.savetxt(tmp_path / str(i) / "a", rng.normal(size=(30, 5)))
    np.savetxt(tmp_path / "0/b", rng.normal(size=(30, 5)))
    (tmp_path / "0/0").mkdir()
    before = sorted(tmp_path.rglob("*"))
    (code, _, err), (code_1, _, err_1) = ended(commands(tmp_path, "--quick", each=each), BOUND)
    assert code in (1, 2)
    assert code_1 in (1, 2)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "error: " not in err_1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_a_message(victim: int, tmp_path: Path) -> None:
    both = commands(tmp_path, "--quick", "--steps", 10**6, "--run", "r", "--save-every", 20)
    folder = tmp_path / "0/r/checkpoints"
    wait_for(lambda: [saved for saved in folder.glob("*-step-*") if not saved.suffix])  # whole
    both[victim].send_signal(signal.SIGKILL)
    results = ended(both, within=BOUND)
    code, _, err = results[1 - victim]
    assert code not in (0, None)
    assert re.search("another process has ended|another task died", err)
    step = Checkpoints(folder).last.step
    both = commands(tmp_path, "--resume", "r", "--steps", step + 10)
    assert [code for code, _, _ in ended(both)] == [0, 0]


@pytest.mark.slow
def test_a_slow_process_is_waited_for(tmp_path: Path) -> None:
    both = commands(tmp_path, "--quick", "--steps", 1500, "--run", "r")
    wait_for(lambda: len(rows(tmp_path / "0/r")) > 2)
    both[1].send_signal(signal.SIGSTOP)
    time.sleep(20)
    seen = rows(tmp_path / "0/r")[-1]["step"]
    time.sleep(2)
    assert rows(tmp_path / "0/r")[-1]["step"] == seen < 1500
    both[1].send_signal(signal.SIGCONT)
    assert [code for code, _, _ in ended(both)] == [0, 0]
    assert rows(tmp_path / "0/r")[-1]["step"] == 1500


@pytest.mark.slow
def test_clocks_may_be_apart(tmp_path: Path) -> None:
    """--minutes goes by the clock of process 0, however late the other one thinks it is."""
    late = "from experiments.harness import learning; learning.STARTED -= 3600; "
    folder = tmp_path
    port, both = free_port(), []
    for i, code in enumerate((TOY, late + TOY)):
        place = ["--coordinator", f"localhost:{port}", "--processes", 2, "--process", i]
        options = ["--quick", "--minutes", 0.5, "--run", "r"]
        both.append(started(["-c", code, *place, *options], cwd=folder))
    assert [code for code, _, _ in ended(both)] == [0, 0]
    assert rows(folder / "r")[-1]["step"] > 50


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/shm").is_dir(), reason="mounts a disk")
def test_a_full_disk_ends_both_and_keeps_the_checkpoints(tmp_path: Path) -> None:
    small = tmp_path / "0"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, timeout=60).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        both = commands(tmp_path, "--quick", "--steps", 3000, "--evaluations", 300, "--run", "r")
        (code, _, err), (code_1, _, err_1) = ended(both)
        assert Checkpoints(small / "r/checkpoints", read_only=True).last.step > 0
    finally:
        subprocess.run(["umount", "-l", str(small)], timeout=60)
    assert (code, code_1) == (1, 1)
    assert re.search("No space left|make room", err)
    assert "error: " not in err_1


@pytest.mark.slow
def test_slurm_says_who_and_where(tmp_path: Path) -> None:
    """As srun sets it, for two tasks on this machine."""
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost"}
    job |= {"SLURM_NTASKS": "2"}
    both = []
    for i in range(2):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}).items():
                patch.setenv(name, value)
            options = ["--quick", "--run", "r", "--coordinator", "auto"]
            both.append(started(["-c", TOY, *options], cwd=tmp_path))
    assert [code for code, _, _ in ended(both)] == [0, 0]
    assert (tmp_path / "r/numbers.json").exists()


def lines_of_readme() -> list[str]:
    """The command lines of the section on devices and processes."""
    text = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    section = text.partition("## More than one core")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)\n```$", section, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_lines_of_the_readme(number: int, tmp_path: Path) -> None:
    """As they stand there, but quick, and at a port that is free."""
    lines = lines_of_readme()
    assert len(lines) == 2
    line = lines[number].replace(".venv/bin/python", sys.executable)
    line = line.replace("7777", str(free_port()))
    line = re.sub("-m experiments.char_lm", "-m experiments.char_lm --quick --run r", line)
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        ["bash", "-c", line + "; wait"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=4 * BOUND,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best validation loss") == 1
    assert rows(tmp_path / "r")[-1]["step"] == 300
