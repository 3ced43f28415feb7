"""The options of what writes by drawing one token after the other."""

from dataclasses import dataclass
from typing import Any

from experiments.harness import command
from experiments.harness.application import Use


@dataclass(frozen=True)
class Sampling(Use):
    """How a net that predicts the next token writes; an application adds what it goes on from."""

    length: int = 500
    """How many to write after the prompt: characters, or words."""
    temperature: float = 1.0
    """Below 1 safer, above 1 more varied, 0 for the most likely one each time."""
    top_k: int | None = None
    """Choose among the so many most likely ones only."""
    top_p: float | None = None
    """Choose among the fewest most likely ones that have this probability together."""
    seed: int = 0
    """Another seed, another text."""

    def check(self) -> None:
        command.at_least(self, length=0, temperature=0.0, top_k=1, seed=0)
        expected = "a probability above 0, at most 1"
        command.require(self, "top_p", self.top_p is None or 0 < self.top_p <= 1, expected)

    @property
    def chosen(self) -> dict[str, Any]:
        """The options of `rnn_jax.generate.stream`."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
