"""What is to be read beside decoding.py: higher is better in every track here, which asv would take for worse.

So asv.conf.json keeps this file out of asv's regressions, and `asv continuous` is told by `--bench` to leave it out.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks import measured, parameters
from benchmarks.parameters import Tracks, rounded, setup_cache, track

__all__ = ["Auto", "Autoregressive", "Greedy", "RandomWeights", "Real", "Sampled", "setup_cache"]


class _SpeedTracks(Tracks):
    @track("tokens/s", "tokens a second")
    def track_tokens_per_second(self, *_: Any) -> float:
        """New tokens a second, prompt included: the median over passes."""
        return rounded(median(self.ratios("emitted", "seconds")))


class _DraftedTracks(_SpeedTracks):
    @track("accepted/proposed", "acceptance rate")
    def track_acceptance_rate(self, *_: Any) -> float:
        """The share of proposed tokens that were kept."""
        return self.share("accepted", "proposed")

    @track("tokens/round", "tokens a round")
    def track_tokens_per_round(self, *_: Any) -> float:
        """New tokens for each forward of the target: 1 without a draft."""
        return self.share("emitted", "rounds")

    @track("times", "speed-up over autoregressive")
    def track_over_autoregressive(self, *_: Any) -> float:
        """Sybil's time without a draft over its time with one, in the same run: the median over passes."""
        return self.speed_up(self.plain(self.chosen))


class _BesideTransformers(Tracks):
    @track("times", "speed-up over transformers")
    def track_over_transformers(self, *_: Any) -> float:
        """The time of transformers' own generate over Sybil's, in the same run: the median over passes."""
        return self.speed_up(measured.TRANSFORMERS)


class Greedy(_DraftedTracks, _BesideTransformers, parameters.GreedyTracks):
    """The embedded pair, greedy, by drafter and gamma."""


class Sampled(_DraftedTracks, parameters.SampledTracks):
    """The embedded pair, sampled at temperature 1, by rule; gamma 4."""


class RandomWeights(_DraftedTracks, parameters.RandomWeightsTracks):
    """Real forwards of GPT-2 and GPT-2 Medium with random weights; what is proposed was chosen for gamma 4."""


class Auto(_DraftedTracks, _BesideTransformers, parameters.AutoTracks):
    """The embedded pair, greedy, each drafter at gamma auto."""


class Real(_DraftedTracks, parameters.RealTracks):
    """SmolLM2 in float32, greedy, by what needs no second model, at gamma auto."""


class Autoregressive(_SpeedTracks, _BesideTransformers, parameters.AutoregressiveTracks):
    """Sybil without a draft, greedy."""
