"""Errands in a room with closed places: find, fetch, transform, put."""

from steprl.envs.errand.env import Errand, ErrandState
from steprl.envs.errand.expert import demonstrate, optimal
from steprl.envs.errand.language import vocabulary
from steprl.envs.errand.suite import open

__all__ = [
    "Errand",
    "ErrandState",
    "demonstrate",
    "open",
    "optimal",
    "vocabulary",
]
