"""What a commit may not worsen, decoding: lower is better in every track here. All read the one measured run."""

from __future__ import annotations

from typing import Any

from benchmarks import parameters
from benchmarks.parameters import Tracks, rounded, samples, setup_cache, track

__all__ = ["Auto", "Autoregressive", "Greedy", "RandomWeights", "Real", "Sampled", "Synthetic", "setup_cache"]


class _RoundTimes(Tracks):
    @track("ms/token", "time a token")
    def track_ms_per_token(self, *_: Any) -> dict[str, Any]:
        """Milliseconds for each new token, prompt included."""
        return samples(self.ratios("seconds", "emitted", 1e3))

    @track("ms/round", "round overhead")
    def track_round_overhead(self, *_: Any) -> dict[str, Any]:
        """Milliseconds of a round that are no forward: judging, committing, Python. Drafting counts as a forward."""
        return samples(self.ratios("outside_forwards", "rounds", 1e3))


class _Times(_RoundTimes):
    @track("ms", "time to the first token")
    def track_time_to_first_token(self, *_: Any) -> dict[str, Any]:
        """Milliseconds until the first round's tokens are there: the prompt, then a round."""
        return samples(self.ratios("time_to_first_token", "prompts", 1e3))


class _DraftedTimes(_Times):
    @track("rejected/proposed", "rejection rate")
    def track_rejection_rate(self, *_: Any) -> float:
        """The share of proposed tokens that were not kept. The same at every run of a commit on one machine."""
        return rounded(1 - self.share("accepted", "proposed"))

    @track("forwards/token", "target forwards a token")
    def track_forwards_per_token(self, *_: Any) -> float:
        """Forwards of the target for each new token: 1 without a draft. The same at every run on one machine."""
        return self.share("rounds", "emitted")


class Greedy(_DraftedTimes, parameters.GreedyTracks):
    """The embedded pair, greedy, by drafter and gamma."""


class Sampled(_DraftedTimes, parameters.SampledTracks):
    """The embedded pair, sampled at temperature 1, by rule; gamma 4."""


class RandomWeights(_DraftedTimes, parameters.RandomWeightsTracks):
    """Real forwards of GPT-2 and GPT-2 Medium with random weights; what is proposed was chosen for gamma 4."""


class Synthetic(_RoundTimes, parameters.SyntheticTracks):
    """The embedded pair, greedy, gamma 4: what a round costs where 0, 50 or 100 % of what is proposed are kept."""


class Auto(_Times, parameters.AutoTracks):
    """The embedded pair, greedy, each drafter at gamma auto: what it counts depends on the clock, so time alone."""


class Real(_Times, parameters.RealTracks):
    """SmolLM2 in float32, greedy, by what needs no second model, at gamma auto."""


class Autoregressive(_Times, parameters.AutoregressiveTracks):
    """Sybil without a draft, greedy."""
