"""Settings that do not fit each other, the devices or the environment are refused here."""

import importlib.util

import jax
from jax.sharding import Mesh

from steprl.algorithms import Algorithm, check_needs, future_kl_loss
from steprl.branching import initial_attempts, keeps_groups
from steprl.config import Config
from steprl.config.checks import shown
from steprl.config.environments import NO_ENVIRONMENT
from steprl.envs.nothing import REFUSAL
from steprl.envs.suite import Suite
from steprl.optimizer import CRITIC_PARTS, has_own_passes
from steprl.rollout import Player
from steprl.types import Policy


def check_loggers(config: Config) -> None:
    for backend, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if backend in config.trainer.logger and importlib.util.find_spec(package) is None:
            raise ValueError(f"trainer.logger: {backend} was asked for, so `pip install {package}`")


def check_rows(config: Config, mesh: Mesh) -> None:
    rows = config.rollout.batch_size * config.rollout.n
    for name, size in (
        ("rollout.batch_size * rollout.n", rows),
        ("actor.ppo_mini_batch_size", config.actor.ppo_mini_batch_size),
        ("critic.ppo_mini_batch_size", config.critic.ppo_mini_batch_size),
        ("sft.batch_size", config.sft.batch_size),
    ):
        if size is not None and size % mesh.size:
            raise ValueError(
                f"{name}={size} must be a multiple of the {mesh.size} devices of the mesh"
            )


def check_first_reset(suite: Suite, name: str) -> None:
    """Environments on the host begin a first task; each is asked once. No environment begins none.

    Raises:
        ValueError: one fails; says how.
    """
    if name == NO_ENVIRONMENT:
        return
    for split, env in suite.splits.items():
        try:
            env.reset(0)
        except (Exception, SystemExit) as error:
            said = _first_words(error)
            raise ValueError(
                f"env.name={name}: task 0 of split {split!r} does not begin: {said}"
            ) from error


def _first_words(error: BaseException) -> str:
    """Kind and first line of an exception, whose text may itself fail."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"


def check_plays(config: Config) -> None:
    """There is an environment to play in."""
    if config.env.name == NO_ENVIRONMENT:
        raise ValueError(REFUSAL)


def check_player(config: Config, suite: Suite, player: Player) -> None:
    heldout = player.splits[1:]
    if strangers := [split for split in config.eval.splits if split not in heldout]:
        raise ValueError(
            f"eval.splits: {shown(strangers[0])} is no split to evaluate on; env.name={config.env.name} has "
            f"{', '.join(dict.fromkeys(heldout))}"
        )
    if config.sft.steps and config.sft.data is None and player.demonstrate is None:
        raise ValueError(
            f"sft.steps={config.sft.steps}: env.name={config.env.name} shows no demonstrations; set "
            "sft.data to a file of conversations, or sft.steps=0"
        )
    if config.algorithm.bootstrap_truncated and suite.context == "rebuild":
        raise ValueError(
            "algorithm.bootstrap_truncated asks the critic about what no step has read, which is not "
            f"kept where contexts are rebuilt: turn it off, or let env.name={config.env.name} extend them "
            "(context=extend)"
        )


def check_method(config: Config, method: Algorithm, source: str, critic: bool) -> None:
    """The run gives the method what it needs, and its settings fit the method."""
    offers = ["anchors"] + ["critic"] * critic + ["group"] * (config.rollout.n > 1)
    check_needs(method, source, offers)
    _check_branches(config, method)
    if config.algorithm.bootstrap_truncated and "critic" not in method.needs:
        raise ValueError(
            f"algorithm.bootstrap_truncated asks the critic, and {source} trains none: "
            "use steppo or ppo, or turn it off"
        )
    if method.loss is future_kl_loss and not config.actor.clip_ratio_c:
        raise ValueError(
            f"actor.clip_ratio_c=0: the loss of {source} leaves out what is above it, so set it above 1"
        )
    if config.algorithm.filter_groups and "group" not in method.needs:
        raise ValueError(
            f"algorithm.filter_groups leaves out groups of attempts, and {source} "
            "compares none: turn it off"
        )


def check_critic(config: Config, method: Algorithm, policy: Policy, is_own: bool) -> None:
    """The policy has the parts that settings of the critic are about; a method without one reads none.

    Args:
        policy: shapes of its parameters are looked at, where something asks for them.
        is_own: it is the user's own, and not the decoder of `model`.

    Raises:
        ValueError: the critic has no parameters of its own, or shares what is to be trained alone.
    """
    critic = config.critic
    set_apart = {
        "critic.grad_clip": critic.grad_clip,
        "critic.ppo_epochs": critic.ppo_epochs,
        "critic.ppo_mini_batch_size": critic.ppo_mini_batch_size,
        "trainer.critic_warmup": config.trainer.critic_warmup or None,
    }
    given = {name: value for name, value in set_apart.items() if value is not None}
    if not given or "critic" not in method.needs:
        return
    first = "{}={}".format(*next(iter(given.items())))
    if is_own and not jax.eval_shape(policy.init, jax.random.key(0)).keys() & set(CRITIC_PARTS):
        raise ValueError(
            f"{first}: the critic's parameters are those that a policy keeps under "
            f"{' or '.join(map(repr, CRITIC_PARTS))}, and yours has neither: name them so, or leave it out"
        )
    shares = config.model.value_head == "shared" or is_own
    if has_own_passes(critic) and shares and not critic.detach_trunk:
        name = next(name for name in given if ".ppo_" in name)
        other = "" if is_own else "model.value_head=separate, or "
        raise ValueError(
            f"{name}={given[name]}: a critic can be trained alone only where its loss does not reach the "
            f"policy's trunk: set {other}critic.detach_trunk=true"
        )


def reads_privileged(config: Config, method: Algorithm, has_own_critic: bool) -> bool:
    """Whether the critic reads what the environment tells it alone.

    Args:
        has_own_critic: the policy is the decoder with `model.value_head=separate`.

    Raises:
        ValueError: it is to, and shares the hidden states of the policy, which must not read it.
    """
    if not config.critic.privileged or "critic" not in method.needs:
        return False
    if not has_own_critic:
        raise ValueError(
            "critic.privileged: the critic reads what the policy must not see, so it needs a network of its "
            "own: set model.value_head=separate, which a policy of your own has not, or turn it off"
        )
    return True


def _check_branches(config: Config, method: Algorithm) -> None:
    """Attempts are left for branches, and mini-batches keep those together that share tokens."""
    n = config.rollout.n
    initial_attempts(method.branching, config.algorithm.branch, n)
    if not keeps_groups(method.branching):
        return
    sizes = {
        "actor.ppo_mini_batch_size": config.actor.ppo_mini_batch_size,
        "actor.ppo_micro_batch_size": config.actor.ppo_micro_batch_size,
        "critic.ppo_mini_batch_size": config.critic.ppo_mini_batch_size,
    }
    for name, size in sizes.items():
        if size is not None and size % n:
            raise ValueError(
                f"{name}={size} would part attempts that share tokens: use a multiple of "
                f"rollout.n={n}"
            )
