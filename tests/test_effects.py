"""Settings either act or are said not to: the table of conditions against what updates compute."""

import dataclasses
from fnmatch import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.algorithms import ALGORITHMS
from steprl.carried import VALUE_MOMENTS
from steprl.config import Config, load_config, setting_values
from steprl.config.settings import AlgorithmConfig
from steprl.envs.opening import open_suite
from steprl.models import decoder_config
from steprl.models.scoring import Scores
from steprl.rewards import initial_reward_states
from steprl.session import Session, acting_settings, idle_settings, notice_idle
from steprl.session.effects import RULES
from steprl.update.loss import sample_loss, with_weights
from steprl.update.prepare import prepare
from tests.small import random_batch

# They act in every run, whatever the others are.
ALWAYS = {
    "env.name", "env.household.*", "env.multihop.*", "env.errand.*", "env.shop.*",
    "env.wiki_search.*", "env.mini_shop.*",
    "model.path", "model.name", "model.logprob_chunk", "model.freeze", "model.train_layers",
    "model.lora.rank",
    "sft.steps", "algorithm.name", "algorithm.use_kl_in_reward", "algorithm.scale_rewards",
    "algorithm.mask_*", "algorithm.bootstrap_truncated", "algorithm.filter_groups", "algorithm.rollout_is",
    "actor.lr*", "actor.adam*", "actor.weight_decay", "actor.grad_clip", "actor.loss_agg_mode",
    "actor.entropy_coeff", "actor.use_kl_loss", "actor.ppo_epochs", "actor.ppo_mini_batch_size",
    "actor.ppo_micro_batch_size",
    "rollout.batch_size", "rollout.n", "rollout.temperature", "rollout.top_*",
    "eval.num_tasks", "eval.splits", "eval.temperature", "eval.greedy", "trainer.*", "mesh.*",
}  # fmt: skip
NAMES = tuple(setting_values(Config()))


def session(*overrides, own_policy=False):
    """What the table looks at, without a player and parameters."""
    config = load_config(None, overrides)
    model = None if own_policy else decoder_config("tiny", vocab_size=16)
    suite = open_suite(config.env)
    return Session(config, None, model, None, suite, None, ALGORITHMS[config.algorithm.name])


def idle(*overrides, **how):
    return set(idle_settings(session(*overrides, **how)))


def matching(*patterns):
    return {name for name in NAMES if any(fnmatch(name, pattern) for pattern in patterns)}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_in_the_table_or_always_acts(name):
    """A new setting is put into one of both."""
    assert name in matching(*(pattern for rule in RULES for pattern in rule.settings)) | matching(
        *ALWAYS
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.settings[0])
def test_every_pattern_names_a_setting(rule):
    assert all(matching(pattern) for pattern in rule.settings)


# What the loss computes.

ON = ("actor.use_kl_loss=true", "algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=adaptive",
      "algorithm.kl_penalty=k3", "algorithm.rollout_is=token",
      "actor.loss_agg_mode=seq-mean-token-sum-norm")  # fmt: skip
GROUP = ("rollout.n=2", "rollout.batch_size=4", "actor.ppo_mini_batch_size=8")
# Another value of each, such that the made-up batch shows it.
OTHER = {
    "algorithm.gamma": 0.5, "algorithm.lam": 0.2, "algorithm.norm_adv": False,
    "algorithm.kl_penalty": "k2", "algorithm.kl_ctrl.kl_coef": 0.5,
    "algorithm.kl_ctrl.target_kl": 1e6, "algorithm.kl_ctrl.horizon": 20.0,
    "algorithm.filter_groups_denominator": "all", "algorithm.min_std": 2.0, "algorithm.step_advantage_w": 0.1,
    "algorithm.rollout_is_threshold": 1.1, "algorithm.rollout_is_mode": "mask",
    "algorithm.redundant": "suffix", "algorithm.reward_scale_discount": 0.1,
    "algorithm.future_kl.weight": 0.3, "algorithm.future_kl.decay": 1.0,
    "algorithm.future_kl.clip": 0.01, "algorithm.future_kl.high_only": True,
    "algorithm.future_kl.safety": 0.5,
    "actor.clip_ratio_low": 0.9, "actor.clip_ratio_high": 5.0, "actor.clip_ratio_c": 1.01,
    "actor.loss_agg_mode": "seq-mean-token-sum", "actor.loss_scale_factor": 3.0, "actor.entropy_coeff": 0.2,
    "actor.use_kl_loss": True, "actor.kl_loss_coef": 0.7, "actor.kl_loss_type": "k2",
    "algorithm.use_kl_in_reward": True, "algorithm.scale_rewards": True,
    "algorithm.rollout_is": "sequence", "algorithm.filter_groups": True,
    "critic.vf_coef": 0.1, "critic.cliprange_value": 0.01, "critic.norm_returns": True,
}  # fmt: skip


def changed(config, name, value):
    """The settings with another value of one of them."""
    section, _, rest = name.partition(".")
    part = getattr(config, section)
    part = changed(part, rest, value) if "." in rest else dataclasses.replace(part, **{rest: value})
    return dataclasses.replace(config, **{section: part})


def outcome(config, moved):
    """What a batch of these settings does: slopes of the loss, and states of the rewards."""
    method = ALGORITHMS[config.algorithm.name]
    batch = random_batch(3, rows=16, steps=4)
    # The two attempts at the first task score the same; some steps of others have a long way to go.
    reward_NS = jnp.where(batch.task_N[:, None] == 0, 0.0, 4.0 * batch.reward_NS)
    batch = dataclasses.replace(batch, reward_NS=reward_NS)
    there_NT = batch.step_ids_NT >= 0
    rng = np.random.default_rng(1)
    noise = lambda size: jnp.where(there_NT, rng.normal(0, size, there_NT.shape), 0.0)  # noqa: E731
    blank_N = jnp.zeros(len(batch.task_N))
    old = Scores(batch.logprob_NT + noise(1.0), batch.entropy_NT, noise(1.0), blank_N)
    new = old
    if moved:
        new = Scores(
            old.logprob_NT + noise(1.0), old.entropy_NT, old.value_NT + noise(1.0), blank_N
        )
    if not moved and config.algorithm.rollout_is == "off":
        new = old = old._replace(logprob_NT=batch.logprob_NT)
    reference = batch.logprob_NT + noise(0.5)
    states = initial_reward_states(config.algorithm)
    if VALUE_MOMENTS.needed(config):
        states[VALUE_MOMENTS.name] = VALUE_MOMENTS.init({}, config)
    sample, states, *_ = prepare(batch, old, reference, states, method, config)
    sample = with_weights(sample, method, config)
    slopes = jax.grad(lambda scores: sample_loss(scores, sample, method, config)[0])(new)
    return jax.tree.leaves((slopes, states))


def differs(one, other):
    return any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True)) or len(
        one
    ) != len(other)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("name", ["steppo", "gigpo"])
def test_what_the_table_calls_idle_changes_no_gradient_and_the_rest_does(name):
    run = session(f"algorithm.name={name}", *GROUP, *ON)
    config, silent = run.config, idle_settings(run)
    plain = outcome(config, moved=True)
    values = setting_values(config)
    wrong = {}
    for setting, other in OTHER.items():
        if values[setting] == other or (setting, name) in EXCEPT:
            continue
        found = outcome(changed(config, setting, other), moved=True)
        acts = len(found) != len(plain) or differs(plain, found)
        if acts != (setting not in silent):
            wrong[setting] = silent.get(setting, "does nothing, and the table does not say so")
    assert not wrong


# Refused where nothing compares groups.
EXCEPT = {("algorithm.filter_groups", "steppo")}


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("name", ["steppo", "appo"])
def test_where_a_batch_is_one_step_its_clips_change_no_gradient(name):
    one = ("actor.ppo_epochs=1", "actor.ppo_mini_batch_size=8")
    run = session(f"algorithm.name={name}", *GROUP, *one)
    silent = idle_settings(run)
    clips = {n for n in OTHER if "clip" in n and "future_kl" not in n}
    assert clips <= silent.keys()
    plain = outcome(run.config, moved=False)
    for setting in clips:
        found = outcome(changed(run.config, setting, OTHER[setting]), moved=False)
        for a, b in zip(plain, found, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-7, err_msg=setting)


# Conditions that no loss shows.


@pytest.mark.parametrize(
    ("overrides", "acts", "does_nothing"),
    [
        ([], ["critic.lr", "env.multihop.max_hops", "env.game.thought_tokens"],
         ["env.shop.goods", "env.household.rooms", "rollout.slots", "rollout.env_timeout",
          "rollout.context_length", "rollout.response_length", "rollout.max_steps", "sft.lr",
          "model.lora.alpha", "model.template", "env.multihop.demo_lazy", "actor.min_lr_ratio",
          "algorithm.branch.initial", "algorithm.similarity_thresh", "env.game.reward_delay"]),
        (["env.name=household", "rollout.max_steps=3"],
         ["rollout.slots", "rollout.context_length", "env.household.max_steps"],
         ["rollout.max_steps", "env.household.max_receptacles", "env.game.thought_tokens",
          "rollout.env_timeout"]),
        (["env.name=household", "rollout.env_workers=2"], ["rollout.env_timeout"], []),
        (["env.name=household"], ["actor.ppo_max_token_len"], []),
        (["env.name=household", "model.value_head=separate", "critic.ppo_epochs=2"], [],
         ["actor.ppo_max_token_len"]),
        (["env.name=household", "env.household.rooms=generated"],
         ["env.household.max_receptacles"], []),
        (["sft.steps=3"], ["sft.lr", "sft.save_freq", "env.multihop.demo_lazy"],
         ["env.multihop.demo_retry"]),
        (["sft.steps=3", "env.multihop.search_failure=0.1"], ["env.multihop.demo_retry"], []),
        (["model.value_head=separate"], ["critic.init"], ["critic.detach_trunk"]),
        ([], ["critic.detach_trunk", "trainer.critic_warmup", "critic.ppo_epochs"], ["critic.init"]),
        (["algorithm.name=reinforce_pp"], [],
         ["critic.grad_clip", "critic.ppo_epochs", "critic.init", "trainer.critic_warmup"]),
        (["actor.ppo_epochs=1", "actor.ppo_mini_batch_size=256", "critic.ppo_epochs=2"],
         ["critic.cliprange_value"], ["actor.clip_ratio_low"]),
        (["critic.ppo_epochs=1", "critic.ppo_mini_batch_size=256"], ["actor.clip_ratio_low"],
         ["critic.cliprange_value"]),
        ([], ["critic.norm_returns"], ["critic.num_bins", "critic.value_min"]),
        (["critic.head=hl_gauss"], ["critic.num_bins", "critic.value_min", "critic.value_max"],
         ["critic.norm_returns", "critic.cliprange_value"]),
        (["model.lora.rank=2"], ["model.lora.alpha", "model.lora.target"], []),
        (["actor.lr_schedule=cosine"], ["actor.min_lr_ratio"], []),
        (["env.game.progress_reward=0.5"], ["env.game.reward_delay"], []),
        (["actor.clip_fraction=0.1"], ["actor.clip_ratio_high"], ["actor.clip_ratio_low"]),
        (["eval.temperature=0"], [], ["eval.n", "eval.top_k", "eval.top_p"]),
        (["algorithm.name=branpo", "rollout.n=2"], ["algorithm.branch.threshold"],
         ["algorithm.branch.initial", "algorithm.gamma", "critic.lr", "model.value_head"]),
        (["algorithm.name=appo", "rollout.n=2"],
         ["algorithm.branch.initial", "algorithm.branch.future_clip", "algorithm.gamma"],
         ["algorithm.branch.threshold", "algorithm.redundant"]),
        (["algorithm.name=appo", "rollout.n=2", "algorithm.branch.future_value=none"], [],
         ["algorithm.branch.future_clip", "algorithm.gamma"]),
        (["algorithm.name=gigpo", "rollout.n=2"], ["algorithm.similarity_thresh"], []),
        (["algorithm.name=grpo", "rollout.n=2", "algorithm.scale_rewards=true"],
         ["algorithm.gamma"], ["algorithm.lam"]),
    ],
)  # fmt: skip
def test_settings_act_where_there_is_something_for_them_to_act_on(overrides, acts, does_nothing):
    silent = idle(*overrides)
    assert not silent & set(acts) and silent >= set(does_nothing)


def test_a_policy_of_ones_own_has_its_own_shape():
    silent = idle(own_policy=True)
    assert {"model.preset", "model.d_model", "model.dtype", "model.remat"} <= silent
    assert not {"model.freeze", "model.logprob_chunk"} & silent


def test_a_method_of_ones_own_may_read_any_setting_of_methods():
    run = session()
    own = run._replace(method=run.method._replace(ratio_level="token"))
    silent = idle_settings(own)
    assert not {f"algorithm.{f.name}" for f in dataclasses.fields(AlgorithmConfig)} & {
        name for name in silent if name.count(".") == 1 and "similarity" not in name
    } - {"algorithm.kl_penalty", "algorithm.filter_groups_denominator",
         "algorithm.rollout_is_threshold", "algorithm.rollout_is_mode"}  # fmt: skip


# What is said.


def test_one_line_names_what_was_set_in_vain_and_why():
    said = notice_idle(session("algorithm.name=grpo", "rollout.n=2", "critic.lr=0.1", "sft.lr=0.1"))
    assert said is not None and "\n" not in said
    assert "critic.lr (grpo trains no critic)" in said and "sft.lr (sft.steps=0)" in said
    assert "critic.vf_coef" not in said  # not set
    assert notice_idle(session()) is None


def test_the_settings_that_act_are_those_of_the_environment_and_the_method():
    shown = acting_settings(session("algorithm.name=grpo", "rollout.n=2"))
    assert list(shown["env"]) == ["name", "game", "multihop"]
    assert "critic" not in shown and "gamma" not in shown["algorithm"]
    assert shown["trainer"]["seed"] == 0
