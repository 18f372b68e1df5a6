"""The smallest run that still has everything: a model of a few thousand numbers on `multihop`."""

from steprl.config import Config, load_config

SMALL = (
    "model.d_model=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.head_dim=8",
    "model.d_ff=32",
    "env.multihop.num_entities=8",
    "env.multihop.min_hops=2",
    "env.multihop.max_hops=2",
    "env.multihop.spare_steps=1",
    "rollout.batch_size=8",
    "actor.ppo_mini_batch_size=8",
    "sft.batch_size=8",
    "sft.warmup_steps=2",
    "eval.num_tasks=8",
    "trainer.total_training_steps=2",
    "trainer.test_freq=0",
    "trainer.save_freq=0",
)


def small_config(*overrides: str) -> Config:
    """The small run with some settings changed."""
    return load_config(None, [*SMALL, *overrides])
