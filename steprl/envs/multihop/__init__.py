"""A question over a small random graph of people, answered by searching it hop by hop."""

from steprl.envs.multihop.env import Multihop, MultihopState
from steprl.envs.multihop.expert import demonstrate, demonstration_settings, optimal
from steprl.envs.multihop.language import ENTITIES, RELATIONS, vocabulary
from steprl.envs.multihop.suite import open
from steprl.envs.multihop.text import MultihopText

__all__ = [
    "ENTITIES",
    "RELATIONS",
    "Multihop",
    "MultihopState",
    "MultihopText",
    "demonstrate",
    "demonstration_settings",
    "open",
    "optimal",
    "vocabulary",
]
