# SPDX-License-Identifier: Apache-2.0
"""Publisher: hands finished values from the adapter's thread to the inference thread, which alone changes what serves.

The values in the serving model and those on offer are two sets. A version on offer is complete and is never written
again; offering it replaces one reference, and the inference thread copies it into the model between two frames. So no
frame can see half of a version.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from xmodal_seg.adaptation.frames import Bin
from xmodal_seg.adaptation.parameters import are_finite
from xmodal_seg.inference import Segmenter
from xmodal_seg.tensor_files import Tensors, hash_tensors

_KEPT_VERSIONS = 16
_DIGITS = 8  # of the values' hash in a name


class Term(NamedTuple):
    """How often somebody has taken versions back; what was learned before the last time is not offered any more."""

    resets: int
    rollbacks: int  # in one bin


@dataclass(frozen=True, kw_only=True)
class Version:
    """Values that passed the gate."""

    bin: Bin
    number: int  # counts up in its bin, over restarts where states are kept
    values: Tensors  # on the CPU, never written again
    metrics: dict[str, float]  # of the gate
    digest: str  # SHA-256 of the values
    steps: int  # accepted ones behind it

    @property
    def name(self) -> str:
        """No two sets of values share one, in whatever drive or process they were learned."""
        return f"{self.bin}.{self.number}-{self.digest[:_DIGITS]}"


class Publisher:
    """Versions by bin. `serve` belongs to the thread of inference, everything else may come from any thread.

    `withdraw` is for the one that offers; `reset` and `roll_back` are for others, and end its term.

    Args:
        references: by bank, the deployed values of what adapts.
        base_version: the name of the deployed weights.
    """

    def __init__(self, *, references: Mapping[str, Tensors], base_version: str) -> None:
        self._lock = threading.Lock()
        self._references = {bank: _frozen_copy(values) for bank, values in references.items()}
        self._base_version = base_version
        self._offered: dict[Bin, tuple[Version, ...]] = {}  # oldest first
        self._is_serving = True
        self._installed: dict[str, Version | None] = dict.fromkeys(references)  # of the inference thread alone
        self._last_number: dict[Bin, int] = {}
        self._resets = 0
        self._rollbacks: dict[Bin, int] = {}
        self.publications = 0

    def term(self, bin: Bin) -> Term:
        """Which one it is in the bin."""
        with self._lock:
            return self._term(bin)

    def offer(
        self,
        bin: Bin,
        values: Mapping[str, torch.Tensor],
        *,
        metrics: Mapping[str, float],
        steps: int,
        term: Term | None = None,
        number: int | None = None,
    ) -> Version | None:
        """Put new values on offer; ValueError, and nothing offered, if one is not finite.

        Args:
            bin: what they are for.
            values: of what adapts.
            metrics: of the gate.
            steps: accepted ones behind them.
            term: in which they were learned; None, and nothing offered, if it has ended. Not given: it does not matter.
            number: of values that had one before a restart; not given: the next one.
        """
        if not are_finite(values):
            raise ValueError(f"publish {bin}: expected finite weights, one is not a number")
        kept = _frozen_copy(values)
        digest = hash_tensors(kept)
        with self._lock:
            if term is not None and term != self._term(bin):
                return None
            last = self._last_number.get(bin, 0)
            number = last + 1 if number is None else number
            self._last_number[bin] = max(last, number)
            version = Version(bin=bin, number=number, values=kept, digest=digest, metrics=dict(metrics), steps=steps)
            self._offered[bin] = (*self._offered.get(bin, ()), version)[-_KEPT_VERSIONS:]
            self.publications += 1
        return version

    def newest(self, bin: Bin) -> Version | None:
        """What is on offer in the bin; None: the reference."""
        versions = self._offered.get(bin, ())
        return versions[-1] if versions else None

    def offered(self) -> list[Version]:
        """What is on offer in every bin that has something."""
        with self._lock:
            return [versions[-1] for versions in self._offered.values() if versions]

    def reference(self, bin: Bin) -> Tensors:
        """The deployed values of the bin's bank."""
        return self._references[bin.bank]

    def values(self, bin: Bin) -> Tensors:
        """Of what is on offer in the bin."""
        version = self.newest(bin)
        return self._references[bin.bank] if version is None else version.values

    def roll_back(self, bin: Bin) -> Version | None:
        """Take the newest version of the bin off offer; what is now on offer, None: the reference.

        Raises ValueError where the reference is on offer already.
        """
        with self._lock:
            if not self._offered.get(bin):
                raise ValueError(f"rollback of {bin}: nothing was published, the reference is served already")
            self._offered[bin] = self._offered[bin][:-1]
            self._rollbacks[bin] = self._rollbacks.get(bin, 0) + 1
            return self.newest(bin)

    def reset(self) -> None:
        """Offer the reference everywhere again."""
        with self._lock:
            self._offered.clear()
            self._resets += 1

    def withdraw(self, bin: Bin) -> None:
        """Offer the reference in this bin again."""
        with self._lock:
            self._offered[bin] = ()

    def set_serving(self, is_serving: bool) -> None:
        """False: the reference is served everywhere, whatever is on offer."""
        self._is_serving = is_serving

    def serve(self, segmenter: Segmenter, bin: Bin) -> str | None:
        """Before a frame: install what is on offer in its bin; the new version's name if something changed."""
        wanted = self.newest(bin) if self._is_serving else None
        if wanted is self._installed[bin.bank]:
            return None
        values = self._references[bin.bank] if wanted is None else wanted.values
        name = self._base_version if wanted is None else f"{self._base_version}+{wanted.name}"
        segmenter.install_bank(bin.bank, values, model_version=name)
        self._installed[bin.bank] = wanted
        return name

    def installed(self, bank: str) -> Version | None:
        """What the inference thread installed last; None: the reference."""
        return self._installed[bank]

    def _term(self, bin: Bin) -> Term:
        return Term(resets=self._resets, rollbacks=self._rollbacks.get(bin, 0))


def _frozen_copy(values: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in values.items()}
