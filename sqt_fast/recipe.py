"""How videos become clips: what was asked for, apart from where and how fast it runs."""

from dataclasses import dataclass

from sqt_fast.config import IndexConfig, Protocol
from sqt_fast.probe import Probe
from sqt_fast.sampling import ClipPlan, plan_clips
from sqt_fast.zoo import find_protocol


@dataclass(frozen=True)
class Recipe:
    """How videos become clips. See ``config.IndexConfig`` for the fields."""

    protocol: Protocol
    stride_s: float | None = None
    target_fps: float | None = None

    @classmethod
    def of(cls, config: IndexConfig) -> "Recipe":
        """Return the recipe that ``config`` asks for."""
        return cls(find_protocol(config.protocol, config.weights), config.stride_s, config.target_fps)

    @property
    def crop_size(self) -> int | None:
        """The centre that alone is needed of every frame, None where several crops are made."""
        return self.protocol.crop_size if self.protocol.num_crops == 1 else None

    def plan(self, facts: Probe) -> ClipPlan:
        """Return the clips of a probed video."""
        return plan_clips(
            facts.times_s,
            facts.end_s,
            num_clips=self.protocol.num_clips,
            stride_s=self.stride_s,
            target_fps=self.target_fps,
        )
