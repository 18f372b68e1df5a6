"""A small web shop with WebShop's rules: search, look, select, buy. Its own goods, or files by path.

    from steprl.envs.mini_shop import mini_shop

    env = mini_shop()  # or mini_shop("products.parquet", "goals.parquet", "other_docs.parquet")
    state, prompt = env.reset(0)
    state, prompt, reward, terminated, truncated, info = env.step(state, "search[rain jackets]")

Searching needs `pip install 'steprl[search]'`.
"""

from steprl.envs.mini_shop.environment import (
    REWARDS,
    SCORE_MODES,
    MiniShop,
    mini_shop,
    open_splits,
)
from steprl.envs.mini_shop.expert import demonstrate
from steprl.envs.mini_shop.records import Goal, Product
from steprl.envs.mini_shop.rules import ShopState
from steprl.envs.mini_shop.scoring import Score, full_score, small_score, token_set_ratio
from steprl.envs.mini_shop.shop import Shop, load_shop, make_shop, small_shop
from steprl.envs.mini_shop.suite import open

__all__ = [
    "REWARDS",
    "SCORE_MODES",
    "Goal",
    "MiniShop",
    "Product",
    "Score",
    "Shop",
    "ShopState",
    "demonstrate",
    "full_score",
    "load_shop",
    "make_shop",
    "mini_shop",
    "open",
    "open_splits",
    "small_score",
    "small_shop",
    "token_set_ratio",
]
