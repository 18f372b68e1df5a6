"""Settings of a run: frozen dataclasses, a YAML file and dotted overrides, checked by omegaconf.

Spellings follow verl where it has them. An unknown key is an error that names the nearest one; a
value of the wrong type or out of range is an error that names the key, the value and what is
allowed.
"""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

LOSS_AGG_MODES = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
    "step-mean-token-sum",
    "step-mean-token-mean",
)
_KL = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
KL_PENALTIES: tuple[str, ...] = (*_KL, *(f"{kind}+" for kind in _KL))
LOGGERS = ("jsonl", "tensorboard", "wandb")


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, out of range, or at odds with another."""


def _field(
    default: Any, low: Any = None, high: Any = None, choices: Sequence[str] | None = None
) -> Any:
    """A setting with its allowed range (both ends included) or its allowed names."""
    return dataclasses.field(default=default, metadata=dict(low=low, high=high, choices=choices))


@dataclasses.dataclass(frozen=True)
class MultihopConfig:
    num_entities: int = _field(48, 4, 96)
    min_hops: int = _field(2, 2, 8)
    max_hops: int = _field(4, 2, 8)
    spare_steps: int = _field(2, 0, 32)  # steps beyond one search a hop and the answer
    search_failure: float = _field(0.0, 0.0, 0.9)  # chance that a well-formed search finds nothing
    # The demonstrator of the warm start. Its weakness must be the mode of the data, not noise:
    # random slips do not make the greedy policy weaker.
    demo_lazy: float = _field(0.8, 0.0, 1.0)  # chance to answer too early
    demo_noise: float = _field(0.05, 0.0, 1.0)  # chance of a random query
    demo_retry: float = _field(0.9, 0.0, 1.0)  # chance to repeat a search that failed
    # Searches fail so often in demonstrations; None is search_failure. Where failures are rare, the
    # n-th search is nearly always about the n-th relation, and a model learns to count instead of
    # looking at what it has done: more failures in the warm start take that shortcut away.
    demo_search_failure: float | None = _field(None, 0.0, 0.9)


@dataclasses.dataclass(frozen=True)
class HouseholdConfig:
    rooms: str = _field("real", choices=("real", "generated"))
    task_types: list[str] = dataclasses.field(default_factory=lambda: ["all"])
    max_steps: int = _field(30, 1, 200)
    remind: bool = True  # end every observation with the task, as StepPO's prompts do
    demo_wander: float = _field(0.0, 0.0, 1.0)  # chance a step that a demonstration walks about
    demo_slip: float = _field(0.0, 0.0, 1.0)  # chance a step of a wrong number in a command
    demo_give_up: float = _field(
        0.0, 0.0, 1.0
    )  # chance a step that a demonstration ends unfinished


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    name: str = _field("multihop", choices=("multihop", "household"))
    multihop: MultihopConfig = MultihopConfig()
    household: HouseholdConfig = HouseholdConfig()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    preset: str = "tiny"
    # None keeps the preset's value.
    d_model: int | None = _field(None, 8)
    num_layers: int | None = _field(None, 1)
    num_heads: int | None = _field(None, 1)
    num_kv_heads: int | None = _field(None, 1)
    head_dim: int | None = _field(None, 2)
    d_ff: int | None = _field(None, 8)
    value_head: str = _field("shared", choices=("shared", "separate", "none"))
    dtype: str = _field("float32", choices=("float32", "bfloat16"))  # of computation
    param_dtype: str = _field("float32", choices=("float32", "bfloat16"))
    remat: bool = False
    logprob_chunk: int = _field(8192, 1)  # tokens whose logits exist at the same time


@dataclasses.dataclass(frozen=True)
class SftConfig:
    steps: int = _field(0, 0)
    batch_size: int = _field(128, 1)
    lr: float = _field(2e-3, 0.0)
    warmup_steps: int = _field(30, 0)
    min_lr_ratio: float = _field(0.1, 0.0, 1.0)  # end of the cosine, as a share of lr
    weight_decay: float = _field(0.0, 0.0)
    grad_clip: float = _field(1.0, 0.0)
    save_freq: int = _field(200, 0)  # 0 saves at the end only


@dataclasses.dataclass(frozen=True)
class KlControlConfig:
    """Coefficient of the KL penalty in the reward."""

    type: str = _field("fixed", choices=("fixed", "adaptive"))
    kl_coef: float = _field(0.001, 0.0)
    target_kl: float = _field(0.1, 1e-8)  # adaptive: KL aimed at
    horizon: float = _field(10_000.0, 1.0)  # adaptive: trajectories over which it adapts


@dataclasses.dataclass(frozen=True)
class FutureKlConfig:
    """Future-KL loss of APPO; function defaults of the reference."""

    weight: float = _field(1.0, 0.0)  # how much of the future is added to the advantage
    decay: float = _field(128.0, 1e-3)  # tokens after which the future counts half
    clip: float = _field(0.2, 0.0)  # 0 = capped at 10 only
    high_only: bool = False  # never below 1
    safety: float = _field(4.0, 0.0)  # ratio above which a bad action is not amplified


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    name: str = "steppo"
    gamma: float = _field(1.0, 0.0, 1.0)
    lam: float = _field(0.95, 0.0, 1.0)
    norm_adv: bool = True  # whiten advantages of a critic, over steps or tokens as the method says
    # What is done to rewards, each off as in the papers.
    use_kl_in_reward: bool = False
    kl_penalty: str = _field("kl", choices=KL_PENALTIES)
    kl_ctrl: KlControlConfig = KlControlConfig()
    scale_rewards: bool = False  # by the running deviation of the returns
    bootstrap_truncated: bool = False  # a limit is not an end: add the critic's value behind it
    # Groups of attempts at one task.
    filter_groups: bool = False  # leave out tasks whose attempts all scored the same
    filter_groups_denominator: str = _field("kept", choices=("kept", "all"))  # of the loss
    step_advantage_w: float = _field(1.0, 0.0)  # gigpo: weight of the step term
    # gigpo: text similarity from which two observations are the same; None = equal ones only
    similarity_thresh: float | None = _field(None, 0.0, 1.0)
    # Importance weights against the policy that sampled (verl's rollout correction); off takes the
    # rollout's own log-probs as the old ones.
    rollout_is: str = _field("off", choices=("off", "token", "step", "sequence"))
    rollout_is_threshold: float = _field(2.0, 1.0)
    rollout_is_mode: str = _field("truncate", choices=("truncate", "mask"))
    # branpo and appo
    redundant: str = _field("first_step", choices=("first_step", "suffix"))
    reward_scale_discount: float = _field(0.9, 0.0, 1.0)
    future_kl: FutureKlConfig = FutureKlConfig()


@dataclasses.dataclass(frozen=True)
class ActorConfig:
    lr: float = _field(3e-4, 0.0)
    lr_schedule: str = _field("constant", choices=("constant", "linear", "cosine"))
    lr_warmup_steps: int = _field(0, 0)
    min_lr_ratio: float = _field(0.0, 0.0, 1.0)
    adam_b1: float = _field(0.9, 0.0, 0.9999)
    adam_b2: float = _field(0.99, 0.0, 0.99999)
    weight_decay: float = _field(0.0, 0.0)
    grad_clip: float = _field(1.0, 0.0)  # global norm, 0 = off
    clip_ratio_low: float = _field(0.2, 0.0, 1.0)
    clip_ratio_high: float = _field(0.2, 0.0)
    clip_ratio_c: float = _field(3.0, 0.0)  # dual clip, 0 = off, otherwise above 1
    loss_agg_mode: str | None = _field(None, choices=LOSS_AGG_MODES)  # None = the method's own
    # Divisor of seq-mean-token-sum-norm; None = the most tokens that a trajectory can sample.
    loss_scale_factor: float | None = _field(None, 1.0)
    entropy_coeff: float = _field(0.0, 0.0)
    use_kl_loss: bool = False  # stay near the policy that training began with
    kl_loss_coef: float = _field(0.001, 0.0)
    kl_loss_type: str = _field("low_var_kl", choices=KL_PENALTIES)
    ppo_epochs: int = _field(2, 1)
    ppo_mini_batch_size: int = _field(64, 1)  # trajectories an optimiser step
    ppo_micro_batch_size: int = _field(0, 0)  # trajectories a gradient, 0 = the mini-batch


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    lr: float | None = _field(None, 0.0)  # None = actor.lr
    vf_coef: float = _field(0.5, 0.0)
    cliprange_value: float | None = _field(None, 0.0)  # None = no clip


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    batch_size: int = _field(256, 1)  # tasks an iteration
    n: int = _field(1, 1)  # attempts a task
    temperature: float = _field(1.0, 0.0)
    top_k: int = _field(0, 0)  # 0 = off
    top_p: float = _field(1.0, 1e-6, 1.0)
    response_length: int = _field(16, 1)  # tokens of one action, at most
    context_length: int = _field(768, 16)  # tokens of one trajectory, at most (host environments)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    num_tasks: int = _field(1024, 1)
    temperature: float = _field(1.0, 0.0)
    top_k: int = _field(0, 0)
    top_p: float = _field(1.0, 1e-6, 1.0)
    greedy: bool = True  # evaluate at temperature 0 as well


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    experiment_name: str = "run"
    output_dir: str = "runs"
    seed: int = _field(0, 0)
    total_training_steps: int = _field(40, 0)
    test_freq: int = _field(5, 0)  # 0 = at the end only
    save_freq: int = _field(10, 0)  # 0 = at the end only
    max_to_keep: int = _field(3, 1)
    val_before_train: bool = True
    logger: list[str] = dataclasses.field(default_factory=lambda: ["jsonl"])
    init_from: str | None = None  # run directory whose newest parameters to start from


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = _field(-1, -1)  # -1 = what the other axis leaves
    fsdp: int = _field(1, 1)


@dataclasses.dataclass(frozen=True)
class Config:
    env: EnvConfig = EnvConfig()
    model: ModelConfig = ModelConfig()
    sft: SftConfig = SftConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    actor: ActorConfig = ActorConfig()
    critic: CriticConfig = CriticConfig()
    rollout: RolloutConfig = RolloutConfig()
    eval: EvalConfig = EvalConfig()
    trainer: TrainerConfig = TrainerConfig()
    mesh: MeshConfig = MeshConfig()


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides, checks everything.

    Args:
        path: YAML file, or None for the defaults.
        overrides: dotted settings such as ``algorithm.gamma=0.99``.

    Raises:
        ConfigError: unknown key (names the nearest one), wrong type, out of range, contradiction.
        FileNotFoundError: there is no such file.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"config file {str(path)!r} does not exist")
        try:
            loaded = OmegaConf.to_container(OmegaConf.load(path))
        except yaml.YAMLError as error:
            raise ConfigError(
                f"config file {str(path)!r} is not YAML: {_one_line(error)}"
            ) from None
        if not isinstance(loaded, dict):
            raise ConfigError(f"config file {str(path)!r}: expected a mapping of settings")
        tree = {str(key): value for key, value in loaded.items()}
    for item in overrides:
        if "=" not in item or item.startswith(("-", "=")):
            raise ConfigError(
                f"override {item!r}: expected key=value, such as algorithm.gamma=0.99"
            )
    _check_known(tree, Config, "")
    try:
        dotted = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except yaml.YAMLError as error:
        raise ConfigError(f"overrides {list(overrides)}: {_one_line(error)}") from None
    assert isinstance(dotted, dict)
    _check_known(dotted, Config, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), tree, dotted)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        message = str(error).split("\n")[0]
        raise ConfigError(f"{error.full_key or 'config'}: {message}") from None
    assert isinstance(config, Config)
    check_ranges(config)
    check_consistency(config)
    return config


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def save_config(config: Config, path: Path) -> None:
    """Writes every setting, resolved, as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _check_known(tree: Any, kind: type, prefix: str) -> None:
    """Every key of the tree is a field of the dataclass `kind`, at every depth."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(tree, dict):
        raise ConfigError(f"{prefix.rstrip('.')}: expected settings {sorted(known)}, got {tree!r}")
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
            elsewhere = [] if near else [p for p in _paths(Config) if p.split(".")[-1] == key]
            hint += f" (or {elsewhere[0]}?)" if elsewhere else ""
            raise ConfigError(f"unknown setting {prefix}{key}: {hint}")
        inner = known[key].type
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            _check_known(value, inner, f"{prefix}{key}.")


def _paths(kind: type, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found += _paths(field.type, f"{prefix}{field.name}.")
        else:
            found.append(prefix + field.name)
    return found


def check_ranges(config: Any, prefix: str = "") -> None:
    """Every value lies in the range or among the names that stand beside its field."""
    for field in dataclasses.fields(config):
        value, allowed = getattr(config, field.name), field.metadata
        key = prefix + field.name
        if dataclasses.is_dataclass(value):
            check_ranges(value, key + ".")
        if value is None or not allowed:
            continue
        low, high, choices = allowed["low"], allowed["high"], allowed["choices"]
        if choices is not None and value not in choices:
            raise ConfigError(f"{key}={value!r}: allowed are {', '.join(choices)}")
        if isinstance(value, float) and math.isinf(value):
            raise ConfigError(f"{key}={value!r}: must be finite")
        # written so that NaN fails too
        if low is not None and not value >= low:
            raise ConfigError(f"{key}={value!r}: must be at least {low}")
        if high is not None and not value <= high:
            raise ConfigError(f"{key}={value!r}: must be at most {high}")


def check_consistency(config: Config) -> None:
    """Settings that contradict each other are refused before anything is computed."""
    actor, rollout = config.actor, config.rollout
    rows = rollout.batch_size * rollout.n
    if rows % actor.ppo_mini_batch_size:
        raise ConfigError(
            f"actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} must divide "
            f"rollout.batch_size * rollout.n = {rows}"
        )
    if actor.ppo_micro_batch_size and actor.ppo_mini_batch_size % actor.ppo_micro_batch_size:
        raise ConfigError(
            f"actor.ppo_micro_batch_size={actor.ppo_micro_batch_size} must divide "
            f"actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}"
        )
    if 0 < actor.clip_ratio_c <= 1:
        raise ConfigError(f"actor.clip_ratio_c={actor.clip_ratio_c}: must be 0 (off) or above 1")
    if rollout.top_k == 1:
        raise ConfigError(
            "rollout.top_k=1: one token alone could be sampled, whose log-prob is 0 whatever the "
            "parameters are, so nothing would be learnt; use 0 (off) or at least 2"
        )
    if rollout.temperature == 0.0:
        raise ConfigError("rollout.temperature=0.0: training samples, it must be above 0")
    similarity = config.algorithm.similarity_thresh
    if similarity is not None and not 0 < similarity < 1:
        raise ConfigError(
            f"algorithm.similarity_thresh={similarity}: must lie between 0 and 1, ends excluded; "
            "null compares for equality"
        )
    if config.algorithm.rollout_is != "off" and config.algorithm.rollout_is_threshold <= 1:
        raise ConfigError(
            f"algorithm.rollout_is_threshold={config.algorithm.rollout_is_threshold}: must be above 1"
        )
    strangers = [name for name in config.trainer.logger if name not in LOGGERS]
    if strangers:
        raise ConfigError(f"trainer.logger={strangers[0]!r}: allowed are {', '.join(LOGGERS)}")
    hops = config.env.multihop
    if hops.min_hops > hops.max_hops:
        raise ConfigError(
            f"env.multihop.min_hops={hops.min_hops} must be at most "
            f"env.multihop.max_hops={hops.max_hops}"
        )
