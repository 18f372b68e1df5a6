"""A small web shop: search, open, choose options, buy what the prompt names."""

from steprl.envs.shop.env import Shop, ShopState
from steprl.envs.shop.expert import demonstrate, optimal
from steprl.envs.shop.language import COLOURS, KINDS, OPTIONS, PLACES, vocabulary
from steprl.envs.shop.suite import open

__all__ = [
    "COLOURS",
    "KINDS",
    "OPTIONS",
    "PLACES",
    "Shop",
    "ShopState",
    "demonstrate",
    "open",
    "optimal",
    "vocabulary",
]
