"""Composing: what is offered is what the net predicts; answers in the terminal and on the page."""

import http.client
import io
import re
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnn_jax
from experiments import char_lm, word_lm
from experiments.harness import compose
from experiments.harness.compose import Compose, Page, Writer, handler, likeliest

NAMES = ["<unk>", "a", "b", "<c>", "\n"]


def encode(text):
    for name in text.split():
        if name not in NAMES[1:]:
            raise ValueError(f"got {name!r}, expected a, b or <c>")
    return [NAMES.index(name) for name in text.split()]


@pytest.fixture(scope="module")
def write():
    net = rnn_jax.readout(rnn_jax.one_hot(rnn_jax.gru(5, 4), 5), 5)
    params = jax.tree.map(lambda p: 3 * p, net.init(jax.random.key(0)))
    return Writer(
        net, params, start=[4], encode=encode, decode=lambda tokens: [NAMES[t] for t in tokens],
        join=" ".join, never=(0,),
    )  # fmt: skip


def test_what_is_offered_is_what_the_net_predicts(write):
    _, logits = rnn_jax.unroll(write.net, write.params, None, jnp.array([4, 1, 3]))
    p = np.asarray(jax.nn.softmax(logits[-1]))
    offered = likeliest(write, [1, 3], 3)
    order = [i for i in np.argsort(-p) if i != 0][:3]
    assert [token for token, _, _ in offered] == order
    assert [name for _, name, _ in offered] == [NAMES[i] for i in order]
    np.testing.assert_allclose([chance for *_, chance in offered], p[order], rtol=1e-5)
    assert len(likeliest(write, [], 100)) == 4


def test_in_the_terminal(write, monkeypatch):
    first = likeliest(write, [1], 10)[1]
    second = likeliest(write, [1, first[0]], 10)
    answers = ["2", "b b", "<", "zebra", "<", "<", "1"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*answers, "", ""])))
    pieces = list(Compose(Path(), prompt="a").ask(write, [1]))
    texts = [p.strip("\n") for p in pieces if p.startswith("\n")]
    after = f"a {first[1]}"
    one = f"a {likeliest(write, [1], 10)[0][1]}"
    assert [t.strip() for t in texts] == [
        t.strip() for t in ["a", after, f"{after} b b", after, after, "a", "a", one, one]
    ]
    assert "got 'zebra', expected a, b or <c>\n" in pieces
    assert any(f"{second[0][2]:.1%}" in p for p in pieces)


@pytest.fixture
def server(write):
    page = Page(("127.0.0.1", 0), handler(write, [1], 3))
    thread = threading.Thread(target=page.serve_forever, daemon=True)
    thread.start()
    yield page.server_address[1]
    page.shutdown()
    page.server_close()
    thread.join()


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_page_offers_takes_and_takes_back(write, server):
    status, text = get(server, "/")
    assert status == 200
    assert "<pre>a<span" in text
    offered = likeliest(write, [1], 3)
    links = re.findall(r'href="(/\?t=[^"]*)"', text)
    assert links[:3] == [f"/?t=1%2C{token}" for token, *_ in offered]
    assert links[3] == "/?t="  # take back
    for _, name, p in offered:
        assert f"{p:.1%}" in text
        assert name.replace("<", "&lt;").replace(">", "&gt;").strip() in text
    assert "script" not in text
    assert not re.search(r"(src|href)=\"?(https?:)?//", text)
    _, text = get(server, links[0])
    assert f'name="t" value="1,{offered[0][0]}"' in text
    _, text = get(server, "/?t=1&own=" + quote("b <c>"))
    assert "<pre>a b &lt;c&gt;<span" in text


def test_the_page_says_what_is_wrong(server):
    status, text = get(server, "/?t=1&own=zebra")
    assert status == 200
    assert "got &#x27;zebra&#x27;" in text
    assert "<pre>a<span" in text
    assert get(server, "/?t=x")[0] == 400
    assert get(server, "/other")[0] == 404


def test_a_port_that_is_taken(write, server):
    with pytest.raises(compose.BadInput, match=f"--port: got {server}"):
        list(Compose(Path(), port=server).serve(write, []))


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_a_browser_shows_it(server, tmp_path):
    picture = tmp_path / "page.png"
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=2000", "--dump-dom", f"http://127.0.0.1:{server}/?t=1,2",
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "a b" in found.stdout
    assert found.stdout.count("<li>") == 3
    command[-2:] = [f"--screenshot={picture}", command[-1]]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("app", "module", "typed"), [("word_lm", word_lm, "cat sat"), ("char_lm", char_lm, "he")]
)
def test_from_the_command_line(app, module, typed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert module.APPLICATION.main(["--quick", "--steps", "20", "--run", "r"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{typed}\n1\n\n"))
    capsys.readouterr()
    assert module.APPLICATION.main(["compose", "r", "--choices", "3"]) == 0
    text = capsys.readouterr().out
    assert typed in text
    assert text.count("%") == 9
    assert module.APPLICATION.main(["compose", "r", "--choices", "0"]) == 2
