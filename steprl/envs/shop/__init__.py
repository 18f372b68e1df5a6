"""A small web shop: search, open, choose options, buy what was asked for."""

from steprl.envs.shop.env import Shop, ShopState
from steprl.envs.shop.expert import demonstrate, optimal
from steprl.envs.shop.language import COLOURS, KINDS, OPTIONS, PLACES, vocabulary

__all__ = [
    "COLOURS",
    "KINDS",
    "OPTIONS",
    "PLACES",
    "Shop",
    "ShopState",
    "demonstrate",
    "optimal",
    "vocabulary",
]
