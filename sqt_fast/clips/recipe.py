"""How videos become clips: what was asked for, apart from where and how fast it runs."""

from dataclasses import dataclass

from sqt_fast.config import ClipProtocol, IndexConfig
from sqt_fast.network.protocols import find_protocol
from sqt_fast.video.probe import Probe
from sqt_fast.video.sampling import ClipPlan, plan_clips


@dataclass(frozen=True)
class Recipe:
    """How videos become clips. See ``config.IndexConfig`` for the fields."""

    protocol: ClipProtocol
    stride_s: float | None = None
    target_fps: float | None = None

    @classmethod
    def of(cls, config: IndexConfig) -> "Recipe":
        """Return the recipe that ``config`` asks for."""
        return cls(find_protocol(config.protocol, config.weights), config.stride_s, config.target_fps)

    def plan(self, facts: Probe) -> ClipPlan:
        """Return the clips of a probed video."""
        return plan_clips(
            facts.times_s,
            facts.end_s,
            num_clips=self.protocol.num_clips,
            stride_s=self.stride_s,
            target_fps=self.target_fps,
        )
