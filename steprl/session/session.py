"""What a run is made of, before any parameter exists."""

from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh

from steprl.algorithms import Algorithm
from steprl.config import Config
from steprl.envs.suite import Suite
from steprl.models import (
    DecoderConfig,
)
from steprl.rollout import Player
from steprl.sharding import (
    PARAMETER_RULES,
    Rules,
)
from steprl.types import Params, Policy


class Session(NamedTuple):
    """What a run is made of, before any parameter exists."""

    config: Config
    mesh: Mesh
    model: DecoderConfig | None  # None where the policy is the user's own
    policy: Policy
    suite: Suite
    player: Player
    method: Algorithm
    load: Callable[..., Params] | None = None  # reads pretrained parameters, without adapters
    rules: Rules = PARAMETER_RULES  # where parameters lie on the mesh

    @property
    def vocab_size(self) -> int:
        """Tokens that the policy may sample."""
        return len(self.player.tokenizer) if self.model is None else self.model.vocab_size
