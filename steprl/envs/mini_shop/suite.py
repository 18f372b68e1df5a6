"""What the environment brings to a run."""

from steprl.config import MiniShopConfig
from steprl.envs.mini_shop.environment import open_splits
from steprl.envs.mini_shop.expert import demonstrate
from steprl.envs.mini_shop.pages import SYSTEM
from steprl.envs.suite import Suite
from steprl.tools.hermes import TAGS


def open(settings: MiniShopConfig) -> Suite:
    """The goals of each split; prompts describe the one tool themselves."""
    splits = open_splits(**vars(settings))
    return Suite(
        splits=splits,
        sizes={split: len(env.goals) for split, env in splits.items()},
        system=SYSTEM,
        control_tags=TAGS,
        context=settings.context,
        max_steps=settings.max_steps,
        demonstrate=lambda task, seed: demonstrate,
    )
