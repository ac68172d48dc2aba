"""Candidates for the next token."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.fork import new_in_child
from moebind._core.native import CData, ffi
from moebind._core.owner import OfThisProcess
from moebind.errors import SamplerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from moebind.sampling.sampler import Sampler

__all__ = ["TOKEN_DATA", "TokenDataArray"]

#: One candidate, laid out as ``llama_token_data``: token id, log-odds, probability.
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class TokenDataArray(OfThisProcess):
    """Candidates for the next token, which samplers filter, sort and choose from.

    Parameters
    ----------
    data
        A structured array with the fields ``id``, ``logit`` and ``p`` (``moebind.sampling.candidates.TOKEN_DATA``),
        shape ``(n,)``. It is used directly if it is contiguous, writable and of that type, otherwise copied.
    sorted
        Whether it is sorted by descending logit.

    Raises
    ------
    ValueError
        If there are no candidates, or the array has another shape.

    Notes
    -----
    Uses ``llama_token_data_array``.

    Examples
    --------
    >>> candidates = context.token_data_array()
    >>> candidates.apply_sampler(Sampler.top_k(3))
    >>> len(candidates)
    3
    """

    def __init__(self, data: ArrayLike, sorted: bool = False) -> None:
        array = np.asarray(data, TOKEN_DATA)
        if array.ndim != 1 or array.size == 0:
            raise ValueError(f"data has the shape {array.shape}; it takes (n,) with at least one candidate")
        self._storage = np.require(array, requirements=["C", "W"])
        self._native = ffi.new("llama_token_data_array *")
        self._native.data = ffi.from_buffer("llama_token_data[]", self._storage)
        self._native.size = self._storage.size
        self._native.selected = -1
        self._native.sorted = checks.boolean("sorted", sorted)
        # Samplers in several threads take turns; one in Python may apply others.
        self._lock = new_in_child(threading.RLock())

    @classmethod
    def from_logits(cls, logits: ArrayLike) -> TokenDataArray:
        """Candidates for every token of a vocabulary: ids are indices into ``logits``, shape ``(n_vocab,)``."""
        values = checks.float32_array("logits", logits)
        if values.ndim != 1:
            raise ValueError(f"logits has the shape {values.shape}; it takes (n_vocab,)")
        data = np.empty(values.size, TOKEN_DATA)
        data["id"] = np.arange(values.size, dtype=np.int32)
        data["logit"] = values
        data["p"] = 0.0
        return cls(data)

    @property
    def data(self) -> NDArray[np.void]:
        """The candidates that are left: a structured, writable view, valid until a sampler is applied."""
        return self._storage[: self._native.size]

    @property
    def sorted(self) -> bool:
        """Whether they are sorted by descending logit."""
        return bool(self._native.sorted)

    @property
    def selected(self) -> int | None:
        """The index of the candidate that a sampler chose, or None."""
        return int(self._native.selected) if 0 <= self._native.selected < self._native.size else None

    @selected.setter
    def selected(self, place: SupportsIndex | None) -> None:
        self._native.selected = -1 if place is None else checks.integer("selected", place, 0, len(self) - 1)

    @property
    def selected_token(self) -> int | None:
        """The token that a sampler chose, or None."""
        return None if self.selected is None else int(self._storage["id"][self.selected])

    def __len__(self) -> int:
        return int(self._native.size)

    def __iter__(self) -> Iterator[np.void]:
        return iter(self.data)

    def select(self, token: SupportsIndex) -> None:
        """Choose a token that is among the candidates.

        Raises
        ------
        ValueError
            If it is not.
        """
        number = checks.integer("token", token, -checks.INT32_MAX)
        places = np.flatnonzero(self.data["id"] == number)
        if not places.size:
            raise ValueError(f"token {number} is not among the {len(self)} candidates")
        self.selected = int(places[0])

    def keep(self, which: ArrayLike | slice) -> None:
        """Keep some candidates, in the given order, and drop the rest.

        Parameters
        ----------
        which
            A slice, an array of indices, or a boolean array of shape ``(n,)``.

        Raises
        ------
        ValueError
            If none would be left.
        IndexError
            If an index is out of range, or a boolean array has another shape.
        """
        with self._lock:
            index = which if isinstance(which, slice) else np.asarray(which)
            if not isinstance(index, slice) and (index.ndim != 1 or (index.size and index.dtype.kind not in "biu")):
                raise TypeError(f"which has the shape {index.shape} and dtype {index.dtype}; it takes places or a mask")
            if not isinstance(index, slice) and not index.size:
                raise ValueError("which is empty; at least one candidate has to be left")
            places = np.arange(len(self))[index]
            if not places.size or places.size > self._storage.size:
                raise ValueError(f"which names {places.size} of {len(self)} candidates; 1 to {len(self)} can be left")
            selected = np.flatnonzero(places == self._native.selected)
            self._storage[: places.size] = self.data[places]
            self._native.size = places.size
            self._native.selected = int(selected[0]) if selected.size else -1
            self._check_sorted()

    def sort(self) -> None:
        """Sort the candidates by descending logit."""
        self.keep(np.argsort(-self.data["logit"], kind="stable"))
        self._native.sorted = True

    def _check_sorted(self) -> None:
        """Note whether the candidates are still sorted, after Python could change them: samplers rely on it."""
        logits = self.data["logit"]
        self._native.sorted = bool(self._native.sorted and (logits[:-1] >= logits[1:]).all())

    def apply_sampler(self, sampler: Sampler) -> None:
        """Let a sampler change the candidates, in place (``llama_sampler_apply``)."""
        from moebind.sampling.sampler import check_sampler

        check_sampler(sampler)
        sampler.apply(self)

    def with_sampler(self, sampler: Sampler) -> TokenDataArray:
        """Apply a sampler and return this array, for chaining calls."""
        self.apply_sampler(sampler)
        return self

    def sample_token(self, seed: int) -> int:
        """Choose a token at random, by its probability (``llama_sampler_init_dist``).

        Parameters
        ----------
        seed
            0 to 2**32 - 1; the last one means a random seed.
        """
        from moebind.sampling.sampler import Sampler

        with Sampler.dist(seed) as sampler:
            return self._choose(sampler)

    def sample_token_greedy(self) -> int:
        """Choose the token with the highest logit (``llama_sampler_init_greedy``)."""
        from moebind.sampling.sampler import Sampler

        with Sampler.greedy() as sampler:
            return self._choose(sampler)

    def _choose(self, sampler: Sampler) -> int:
        self.apply_sampler(sampler)
        place = self.selected
        if place is None or not self.data["logit"][place] > -np.inf:
            self.selected = None
            raise SamplerError("no candidate can be chosen: all logits are -inf, or some are NaN")
        return int(self.data["id"][place])

    def __repr__(self) -> str:
        return f"<TokenDataArray of {len(self)} candidates, selected_token={self.selected_token}>"

    def _struct(self) -> CData:
        return self._native

    def _take_back(self) -> None:
        """Bring the candidates back here after a sampler, which may have left them in memory of its own."""
        ours = ffi.from_buffer("llama_token_data[]", self._storage)
        if self._native.data != ours:
            size = self._native.size
            theirs = np.frombuffer(ffi.buffer(self._native.data, size * TOKEN_DATA.itemsize), TOKEN_DATA)
            self._storage[:size] = theirs
            self._native.data = ours
