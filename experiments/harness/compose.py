"""A person and a net write together: it offers what could come next, the person decides.

    python -m experiments.NAME compose RUN            in the terminal
    python -m experiments.NAME compose RUN --page     as a page, on a local port

The page is one form without a script. All that was written stands in its address, so the back
button of the browser takes back as well, and a bookmark keeps a text.
"""

import html
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command
from experiments.harness.application import Trained, Use
from experiments.harness.command import BadInput

HELP = (
    "a number takes that one; anything else is written as it is; < takes back; an empty line ends"
)


class Writer(NamedTuple):
    """A net that predicts the next token, and what its tokens mean."""

    net: Any  # a Cell: tokens in, logits out
    params: Any
    start: Any  # the tokens before the text
    encode: Callable[[str], Any]  # what a person types -> tokens; ValueError says what is wrong
    decode: Callable[[Any], Sequence[str]]  # tokens -> their names
    join: Callable[[Sequence[str]], str]  # names -> a text
    never: Sequence[int] = ()  # tokens that are not offered


class Page(ThreadingHTTPServer):
    """A server of one page, on this machine alone."""

    daemon_threads = True


@dataclass(frozen=True)
class Compose(Use):
    """A person and the net write together, in the terminal or as a page."""

    page: bool = False
    """Serve a page on this machine instead of asking in the terminal."""
    port: int = 8000
    """Of the page; 0 for any that is free."""
    choices: int = 10
    """How many of the most likely are offered."""
    prompt: str = ""
    """What the text begins with."""

    def check(self) -> None:
        command.at_least(self, choices=1)
        command.require(self, "port", 0 <= self.port < 65536, "a port from 0 to 65535")

    def writer(self, trained: Trained) -> Writer:
        raise NotImplementedError

    def __call__(self, trained: Trained) -> Iterator[str]:
        write = self.writer(trained)
        tokens = [int(token) for token in write.encode(self.prompt)] if self.prompt else []
        if self.page:
            yield from self.serve(write, tokens)
        else:
            yield from self.ask(write, tokens)

    def ask(self, write: Writer, tokens: list[int]) -> Iterator[str]:
        """In the terminal: what is typed is read from standard input."""
        yield f"{HELP}\n"
        added: list[int] = []  # how many tokens came with each answer
        while True:
            offered = likeliest(write, tokens, self.choices)
            yield f"\n{write.join(write.decode(tokens))}\n"
            for number, (_, name, p) in enumerate(offered, 1):
                yield f"  {number:2}  {shown(name):20} {p:6.1%}\n"
            yield "> "
            line = sys.stdin.readline()
            answer = line.rstrip("\n")
            if not answer:
                yield f"\n{write.join(write.decode(tokens))}\n"
                return
            try:
                more = tokens_of(write, offered, answer)
            except ValueError as error:
                yield f"{command.one_line(error)}\n"
                continue
            if more is None:
                del tokens[len(tokens) - (added.pop() if added else 0) :]
                continue
            tokens.extend(more)
            added.append(len(more))

    def serve(self, write: Writer, tokens: list[int]) -> Iterator[str]:
        """As a page, until Ctrl-C."""
        try:
            server = Page(("127.0.0.1", self.port), handler(write, tokens, self.choices))
        except OSError as error:
            raise BadInput(
                f"--port: got {self.port}, which cannot be served on ({error.strerror}); 0 takes "
                "any that is free"
            ) from error
        with server:
            yield f"http://127.0.0.1:{server.server_address[1]}/ (Ctrl-C ends)\n"
            server.serve_forever()


def tokens_of(write: Writer, offered: list[Any], answer: str) -> list[int] | None:
    """What an answer adds to the text; None for taking back."""
    if answer == "<":
        return None
    if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(offered):
        return [offered[int(answer) - 1][0]]
    return [int(token) for token in write.encode(answer)]


def likeliest(write: Writer, tokens: Sequence[int], count: int) -> list[tuple[int, str, float]]:
    """The tokens that come next most likely: each with its name and its probability."""
    state = write.net.init_state(write.params)
    for token in [*write.start, *tokens]:
        state, p = _step(write.net, write.params, state, jnp.int32(token))
    chances = np.array(p)
    chances[list(write.never)] = -1.0
    best = np.argsort(-chances)[: min(count, len(chances) - len(write.never))]
    return [(int(i), write.decode([i])[0], float(chances[i])) for i in best]


def _advance(net: Any, params: Any, state: Any, token: Any) -> Any:
    state, logits = net.step(params, state, net.project(params, token))
    return state, jax.nn.softmax(logits)


_step = jax.jit(_advance, static_argnums=0)


def shown(name: str) -> str:
    return {"\n": "(new line)", " ": "(space)", "\t": "(tab)"}.get(name, name)


def handler(write: Writer, start: list[int], count: int) -> type[BaseHTTPRequestHandler]:
    """Answers GET / with the page of the text that the address holds."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if address.path != "/":
                return self.send_error(404)
            try:
                status, body = 200, page(write, start, count, parse_qs(address.query))
            except ValueError as error:
                status, body = 400, framed(f"<p>{html.escape(command.one_line(error))}</p>")
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def page(write: Writer, start: list[int], count: int, query: dict[str, list[str]]) -> str:
    """The page: the text so far, a button for each choice, a field, and one to take back."""
    given = query.get("t", [",".join(map(str, start))])[0]
    tokens = [int(token) for token in given.split(",") if token]
    write.decode(tokens)  # raises for what is no token
    said = ""
    if own := query.get("own", [""])[0]:
        try:
            tokens += [int(token) for token in write.encode(own)]
        except ValueError as error:
            said = f'<p class="said">{html.escape(command.one_line(error))}</p>'
    here = ",".join(map(str, tokens))
    link = lambda tokens: "/?" + urlencode({"t": ",".join(map(str, tokens))})  # noqa: E731
    offered = likeliest(write, tokens, count)
    top = offered[0][2] or 1.0
    rows = "".join(
        f'<li><a href="{link([*tokens, token])}"><b>{html.escape(shown(name))}</b>'
        f'<span>{p:.1%}</span><i style="width:{70 * p / top:.0f}%"></i></a></li>'
        for token, name, p in offered
    )
    text = html.escape(write.join(write.decode(tokens))).strip("\n")
    back = f'<a class="back" href="{link(tokens[:-1])}">take back</a>' if tokens else ""
    return framed(
        f'<pre>{text}<span class="cursor">|</span></pre>{said}<ol>{rows}</ol>'
        f'<form action="/"><input type="hidden" name="t" value="{here}">'
        '<input name="own" placeholder="your own words" autofocus autocomplete="off">'
        f'<button>write</button>{back}<a class="back" href="/">start again</a></form>'
    )


def framed(body: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>compose</title>'
        '<meta name="viewport" content="width=device-width"><style>'
        "body{font:16px/1.5 system-ui,sans-serif;max-width:42em;margin:2em auto;padding:0 1em}"
        "pre{font:18px/1.6 Georgia,serif;white-space:pre-wrap;border:1px solid #bbb;"
        "border-radius:6px;padding:1em;min-height:4em}.cursor{color:#c33}"
        "ol{padding-left:2.2em}li{margin:3px 0}"
        "li a{display:inline-block;position:relative;width:85%;padding:2px 8px;color:#111;"
        "text-decoration:none;vertical-align:middle}li a:hover,li a:focus{background:#eef}"
        "li b{display:inline-block;width:14em;font-weight:600}"
        "li i{position:absolute;left:0;bottom:0;height:3px;background:#58c}"
        "input[name=own]{font:inherit;padding:6px;width:18em}button{font:inherit;padding:6px 14px}"
        ".back{margin-left:1em}.said{color:#b00}</style>"
        f"<body>{body}</body></html>"
    )
