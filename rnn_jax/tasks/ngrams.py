"""Kneser-Ney: the n-gram model that a neural language model has to beat.

For a word w after the history h, the last n - 1 words,

  p_n(w | h) = (max(c(hw) - D(c(hw)), 0) + g(h) p_{n-1}(w | h')) / c(h.)
  g(h) = D_1 N_1(h.) + D_2 N_2(h.) + D_3 N_3+(h.)

where h' is h without its first word, N_k(h.) is the number of words that came k times after h, and
c is a count in the highest order, and in lower ones the number of distinct words that came before.
D_k is estimated from how many n-grams came once to four times. Below the lowest order all V words
are equally likely; a history that never came passes the question on.

References:
  Kneser, Ney. Improved backing-off for m-gram language modeling. 1995.
  Chen, Goodman. An empirical study of smoothing techniques for language modeling. 1998 (the three
  discounts, "modified").
"""

from typing import Any, NamedTuple

import numpy as np

from rnn_jax import _checks


class _Order(NamedTuple):
    grams: np.ndarray  # sorted keys: number of the history * V + word
    kept: np.ndarray  # [grams], the count less its discount
    total: np.ndarray  # [histories], c(h.)
    passed_on: np.ndarray  # [histories], the sum of the discounts


class KneserNey:
    """Interpolated modified Kneser-Ney of one order, from a text.

    Args:
      tokens: [T] int, the text.
      num_tokens: V.
      order: n; 1 knows frequencies alone, 5 looks at four words before.

    Raises:
      ValueError: the text is shorter than n, or a token is not from 0 to V - 1.

    Example:
      >>> text = np.array([0, 1, 2] * 20 + [0, 2, 1])
      >>> model = KneserNey(text, 3, order=2)
      >>> p = model.probabilities(np.array([[0, w] for w in range(3)]))
      >>> print(p.argmax(), bool(np.isclose(p.sum(), 1)))
      1 True
    """

    def __init__(self, tokens: Any, num_tokens: int, order: int) -> None:
        self.order = n = _checks.positive_int("order", order)
        self._V = V = _checks.positive_int("num_tokens", num_tokens)
        tokens = np.asarray(tokens, np.int64)
        if tokens.ndim != 1 or len(tokens) < n:
            raise ValueError(f"tokens: got shape {tokens.shape}, expected a text of at least {n}")
        _checks.within("tokens", tokens, V)
        # Of each order: the n-grams that there are, and the place of each in the text among them.
        keys, at = [], [np.zeros(len(tokens), np.int64)]
        for k in range(1, n + 1):
            gram = at[-1][: len(tokens) - k + 1] * V + tokens[k - 1 :]
            found, place = np.unique(gram, return_inverse=True)
            keys.append(found)
            at.append(place)
        counts = np.bincount(at[n])
        self._orders: list[_Order] = []
        for k in range(n, 0, -1):
            self._orders.insert(0, _discounted(keys[k - 1], counts, V, len(keys[k - 2]) * (k > 1)))
            if k > 1:  # of each (k-1)-gram the distinct words before it
                first = np.unique(at[k], return_index=True)[1]
                counts = np.bincount(at[k - 1][first + 1], minlength=len(keys[k - 2]))

    def probabilities(self, grams: Any) -> np.ndarray:
        """p(w | h) of n-grams, [N, n] int: n - 1 words of history and w. Returns [N] float64."""
        grams = np.asarray(grams, np.int64)
        p = np.full(len(grams), 1.0 / self._V)
        for k, order in enumerate(self._orders, 1):
            history = self._number(grams[:, self.order - k : -1])
            known = history >= 0
            h = np.where(known, history, 0)
            place = _place(order.grams, h * self._V + grams[:, -1])
            kept = np.where(known & (place >= 0), order.kept[place], 0.0)
            total = np.where(known, order.total[h], 0.0)
            more = (kept + order.passed_on[h] * p) / np.where(total > 0, total, 1.0)
            p = np.where(total > 0, more, p)
        return p

    def of_text(self, tokens: Any, history: Any = ()) -> np.ndarray:
        """The probability of each word of a text, [T] float64.

        `history` is what stands before it; where that is shorter than n - 1 words, the first n - 1
        words of both together are left out of the result.
        """
        tokens = np.asarray(tokens, np.int64)
        before = np.asarray(history, np.int64)[len(history) - min(len(history), self.order - 1) :]
        whole = np.concatenate([before, tokens])
        windows = np.lib.stride_tricks.sliding_window_view(whole, self.order)
        return self.probabilities(windows)

    def _number(self, histories: np.ndarray) -> np.ndarray:
        """Which k-gram each row is, -1 for one that never came; 0 for the empty one."""
        number = np.zeros(len(histories), np.int64)
        for k in range(histories.shape[1]):
            found = _place(self._orders[k].grams, number * self._V + histories[:, k])
            number = np.where(number >= 0, found, -1)
        return number


def _discounted(keys: np.ndarray, counts: np.ndarray, V: int, histories: int) -> _Order:
    n1, n2, n3, n4 = (max(int((counts == k).sum()), 1) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    found = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    # Of a short text the estimates may leave the range in which they make sense.
    discounts = np.clip(found, [0, 0.1, 0.1, 0.1], [0, 1, 2, 3])
    off = np.minimum(discounts[np.minimum(counts, 3)], counts)
    history, size = keys // V, max(histories, 1)
    return _Order(
        keys,
        counts - off,
        np.bincount(history, weights=counts, minlength=size),
        np.bincount(history, weights=off, minlength=size),
    )


def _place(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each key is, -1 where it is not."""
    place = np.searchsorted(sorted_keys, keys).clip(max=len(sorted_keys) - 1)
    return np.where(sorted_keys[place] == keys, place, -1)
