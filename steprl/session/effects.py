"""Which settings act in a run, and which do nothing there: one table of conditions.

Configurations are shared between methods and environments, so a setting that does nothing is no error;
it is said in one line at the start of a run.
"""

import dataclasses
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any, NamedTuple

from steprl.algorithms import ALGORITHMS, future_kl_loss
from steprl.branching import ByScore, Contrast
from steprl.config import Config
from steprl.config.environments import ENVIRONMENTS
from steprl.config.settings import setting_values
from steprl.optimizer import critic_passes, has_own_passes
from steprl.session.session import Session


class Rule(NamedTuple):
    """Settings, by pattern, that do nothing where `idle` holds, and why."""

    settings: tuple[str, ...]
    idle: Callable[[Session], bool]
    reason: str  # a format of `method` and `env`, by their names


def _method(*names: str) -> Callable[[Session], bool]:
    """The method is one of the project's, and none of these."""
    return lambda run: _row(run) is not None and _row(run) not in names


def _row(run: Session) -> str | None:
    """Name of the method in the table; None for one of the user's own, which may read anything."""
    return next((name for name, row in ALGORITHMS.items() if row is run.method), None)


def _has_critic(run: Session) -> bool:
    return "critic" in run.method.needs or _row(run) is None


def _future_value(run: Session) -> bool:
    branching = run.method.branching
    return isinstance(branching, ByScore) and branching.future_value


def _without_discount(run: Session) -> bool:
    settings = run.config.algorithm
    return (
        _method("steppo", "ppo", "reinforce_pp", "gigpo")(run)
        and not (settings.scale_rewards or settings.bootstrap_truncated)
        and not (_future_value(run) and settings.branch.future_value == "previous")
    )


def _aggregation(run: Session) -> str:
    return run.config.actor.loss_agg_mode or run.method.reduction


def _one_step(run: Session) -> bool:
    """Each batch is one step of the optimiser: its policy is the one that sampled."""
    actor, rollout = run.config.actor, run.config.rollout
    return actor.ppo_epochs == 1 and actor.ppo_mini_batch_size == rollout.batch_size * rollout.n


def _one_step_of_critic(run: Session) -> bool:
    rollout, (epochs, size) = run.config.rollout, critic_passes(run.config)
    return epochs == 1 and size == rollout.batch_size * rollout.n


def _workers(run: Session) -> int:
    workers = run.config.rollout.env_workers
    return run.suite.workers if workers is None else workers


def _on_device(run: Session) -> bool:
    return run.suite.game is not None


def _demonstrates(run: Session) -> bool:
    return run.config.sft.steps > 0 and run.config.sft.data is None


def _demo_failures(run: Session) -> float:
    settings = run.config.env.multihop
    often = settings.demo_search_failure
    return settings.search_failure if often is None else often


def _other_than(name: str) -> Callable[[Session], bool]:
    return lambda run: run.config.env.name != name


_DECODER = ("model.preset", "model.d_model", "model.num_*", "model.head_dim", "model.d_ff")

RULES: tuple[Rule, ...] = (
    *(Rule((f"env.{name}.*",), _other_than(name), "of another environment") for name in ENVIRONMENTS),
    Rule(("env.options",), lambda run: run.config.env.name in ENVIRONMENTS, "{env} has a section"),
    Rule(("env.game.*",), lambda run: not _on_device(run), "{env} is no game on the device"),
    Rule(("env.game.reward_delay",), lambda run: run.config.env.game.progress_reward == 0,
         "env.game.progress_reward=0"),
    Rule(("env.*.demo_*",), lambda run: not _demonstrates(run), "no warm start on demonstrations"),
    Rule(("env.multihop.demo_retry",), lambda run: _demo_failures(run) == 0,
         "no search fails in demonstrations"),
    Rule(("env.household.max_receptacles", "env.household.max_object_types"),
         lambda run: run.config.env.household.rooms == "real", "env.household.rooms=real"),
    Rule(("env.mini_shop.success_reward", "env.mini_shop.call_penalty"),
         lambda run: run.config.env.mini_shop.reward != "success", "env.mini_shop.reward"),
    Rule(("env.mini_shop.history_*",), lambda run: run.config.env.mini_shop.context == "extend",
         "env.mini_shop.context=extend"),
    Rule(("env.wiki_search.recent_issues",),
         lambda run: run.config.env.wiki_search.context == "extend", "env.wiki_search.context=extend"),
    # --- model
    Rule(("model.template",), lambda run: run.config.model.path is None, "model.path is not set"),
    Rule(("model.options",), lambda run: run.config.model.name is None, "model.name is not set"),
    Rule(("model.preset",), lambda run: run.config.model.path is not None,
         "the shape is that of model.path"),
    Rule((*_DECODER, "model.value_head", "model.*dtype", "model.remat", "model.lora.*"),
         lambda run: run.model is None, "the policy is your own"),
    Rule(("model.value_head",), lambda run: not _has_critic(run), "{method} trains no critic"),
    Rule(("model.lora.alpha", "model.lora.target"), lambda run: run.config.model.lora.rank == 0,
         "model.lora.rank=0"),
    Rule(("actor.ppo_max_token_len",),
         lambda run: _on_device(run) or run.config.actor.ppo_micro_batch_size > 0,
         "micro-batches are counted in trajectories"),
    Rule(("actor.ppo_max_token_len",),
         lambda run: "critic" in run.method.needs and has_own_passes(run.config.critic),
         "a critic with passes of its own takes trajectories that are not packed"),
    # --- warm start
    Rule(("sft.[!s]*", "sft.save_freq"), lambda run: run.config.sft.steps == 0, "sft.steps=0"),
    Rule(("sft.test_*",), lambda run: run.config.sft.until is None, "sft.until is not set"),
    # --- method
    Rule(("algorithm.options",), lambda run: _row(run) is not None, "{method} takes none"),
    Rule(("algorithm.gamma",), _without_discount, "{method} discounts nothing"),
    Rule(("algorithm.lam", "algorithm.norm_adv"), _method("steppo", "ppo"), "{method} has no GAE"),
    Rule(("algorithm.kl_penalty", "algorithm.kl_ctrl.*"),
         lambda run: not run.config.algorithm.use_kl_in_reward, "algorithm.use_kl_in_reward=false"),
    Rule(("algorithm.kl_ctrl.target_kl", "algorithm.kl_ctrl.horizon"),
         lambda run: run.config.algorithm.kl_ctrl.type == "fixed", "algorithm.kl_ctrl.type=fixed"),
    Rule(("algorithm.filter_groups_denominator",),
         lambda run: not run.config.algorithm.filter_groups, "algorithm.filter_groups=false"),
    Rule(("algorithm.singleton",),
         lambda run: "group" not in run.method.needs and _row(run) is not None,
         "{method} compares no attempts"),
    Rule(("algorithm.min_std",), _method("grpo", "gspo", "gigpo", "arpo"),
         "{method} does not divide by the deviation of a group"),
    Rule(("algorithm.step_advantage_w",), _method("gigpo"), "of gigpo"),
    Rule(("algorithm.similarity_thresh",), lambda run: "anchors" not in run.method.needs,
         "{method} compares no observations"),
    Rule(("algorithm.rollout_is_*",), lambda run: run.config.algorithm.rollout_is == "off",
         "algorithm.rollout_is=off"),
    Rule(("algorithm.branch.threshold",),
         lambda run: not isinstance(run.method.branching, Contrast), "{method} contrasts no branches"),
    Rule(("algorithm.branch.initial", "algorithm.branch.negative_pairs", "algorithm.branch.refill"),
         lambda run: not isinstance(run.method.branching, ByScore), "{method} scores no branches"),
    Rule(("algorithm.branch.future_*",), lambda run: not _future_value(run),
         "{method} has no future value"),
    Rule(("algorithm.branch.future_clip",),
         lambda run: run.config.algorithm.branch.future_value == "none",
         "algorithm.branch.future_value=none"),
    Rule(("algorithm.redundant",), _method("branpo"), "of branpo"),
    Rule(("algorithm.reward_scale_discount",), _method("appo"), "of appo"),
    Rule(("algorithm.future_kl.*",),
         lambda run: run.method.loss is not future_kl_loss and _row(run) is not None, "of appo"),
    # --- actor and critic
    Rule(("actor.min_lr_ratio",), lambda run: run.config.actor.lr_schedule == "constant",
         "actor.lr_schedule=constant"),
    Rule(("actor.clip_*",), lambda run: _one_step(run) and _row(run) is not None,
         "one optimiser step a batch, so every ratio is 1"),
    Rule(("actor.target_kl",), _one_step, "one optimiser step a batch"),
    Rule(("actor.clip_ratio_low",), lambda run: run.config.actor.clip_fraction is not None,
         "actor.clip_fraction moves the clip"),
    Rule(("actor.loss_scale_factor",), lambda run: _aggregation(run) != "seq-mean-token-sum-norm",
         "the loss is not aggregated by seq-mean-token-sum-norm"),
    Rule(("actor.kl_loss_*",), lambda run: not run.config.actor.use_kl_loss,
         "actor.use_kl_loss=false"),
    Rule(("critic.*",), lambda run: not _has_critic(run), "{method} trains no critic"),
    Rule(("trainer.critic_warmup",), lambda run: not _has_critic(run), "{method} trains no critic"),
    Rule(("critic.cliprange_value",), _one_step_of_critic,
         "one optimiser step a batch, so no value has moved"),
    Rule(("critic.init",), lambda run: run.model is None, "the policy is your own"),
    Rule(("critic.init",), lambda run: run.config.model.value_head != "separate",
         "the critic reads the policy's own trunk"),
    Rule(("critic.detach_trunk",),
         lambda run: run.model is not None and run.config.model.value_head == "separate",
         "the critic has a trunk of its own"),
    Rule(("critic.cliprange_value", "critic.norm_returns"), lambda run: run.config.critic.head == "hl_gauss",
         "critic.head=hl_gauss has a range of its own"),
    Rule(("critic.value_m*", "critic.num_bins", "critic.sigma_ratio"),
         lambda run: run.config.critic.head == "scalar", "critic.head=scalar"),
    # --- rollout and evaluation
    Rule(("rollout.context_length",), lambda run: _on_device(run) and run.config.sft.data is None,
         "{env} is a game on the device"),
    Rule(("rollout.response_length",),
         lambda run: _on_device(run) and (_aggregation(run) != "seq-mean-token-sum-norm"
                                          or run.config.actor.loss_scale_factor is not None),
         "{env} is a game on the device"),
    Rule(("rollout.slots", "rollout.env_*", "rollout.observation_limit"), _on_device,
         "{env} is a game on the device"),
    Rule(("rollout.max_steps",), lambda run: _on_device(run) or run.suite.max_steps is not None,
         "{env} has a limit of its own"),
    Rule(("rollout.env_timeout", "rollout.env_isolate"), lambda run: _workers(run) == 0,
         "rollout.env_workers=0"),
    Rule(("eval.top_*", "eval.n"), lambda run: run.config.eval.temperature == 0,
         "eval.temperature=0"),
)  # fmt: skip


def idle_settings(run: Session) -> dict[str, str]:
    """Settings that do nothing in a run, by their dotted names, each with the reason."""
    names = dict(method=run.config.algorithm.name, env=run.config.env.name)
    idle: dict[str, str] = {}
    for rule in RULES:
        if not rule.idle(run):
            continue
        for name in setting_values(run.config):
            if name not in idle and any(fnmatch(name, pattern) for pattern in rule.settings):
                idle[name] = rule.reason.format(**names)
    return idle


def notice_idle(run: Session) -> str | None:
    """One line that names the settings that are not at their default and do nothing; None: all act."""
    default, now = setting_values(Config()), setting_values(run.config)
    by_reason: dict[str, list[str]] = {}
    for name, reason in idle_settings(run).items():
        if now[name] != default[name]:
            by_reason.setdefault(reason, []).append(name)
    if not by_reason:
        return None
    return "without effect here: " + "; ".join(
        f"{', '.join(names)} ({reason})" for reason, names in by_reason.items()
    )


def acting_settings(run: Session) -> dict[str, Any]:
    """The tree of all settings that do something in a run."""
    idle = idle_settings(run)

    def part(section: Any, prefix: str) -> dict[str, Any]:
        found = {}
        for field in dataclasses.fields(section):
            value, name = getattr(section, field.name), prefix + field.name
            if dataclasses.is_dataclass(value):
                if inner := part(value, f"{name}."):
                    found[field.name] = inner
            elif name not in idle:
                found[field.name] = value
        return found

    return part(run.config, "")
