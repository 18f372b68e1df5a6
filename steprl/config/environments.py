"""Settings of the environments, and what every setting is made of."""

import dataclasses
from collections.abc import Sequence
from typing import Any

# Each is a package of steprl.envs, whose `open` takes the section of `EnvConfig` of the same name.
# The first are games on the device, each with a small language of its own.
GAMES = ("multihop", "errand", "shop")
NO_ENVIRONMENT = "none"  # of runs that only learn from conversations
ENVIRONMENTS = (*GAMES, "household", "wiki_search", "mini_shop")
# Of other packages, set by env.options; each is a module of steprl.envs.adapters.
ADAPTERS = (
    "alfworld",
    "gymnasium",
    "reasoning_gym",
    "scienceworld",
    "textarena",
    "textworld",
    "textworld_express",
)


def setting(
    default: Any, low: Any = None, high: Any = None, choices: Sequence[str] | None = None
) -> Any:
    """A setting with its allowed range (both ends included) or its allowed names."""
    return dataclasses.field(default=default, metadata=dict(low=low, high=high, choices=choices))


@dataclasses.dataclass(frozen=True)
class MultihopConfig:
    """Questions about a small graph, answered by searching it; a game on the device."""

    num_entities: int = setting(48, 4, 96)  # people of the graph
    min_hops: int = setting(2, 2, 12)  # relations in a question, at least
    max_hops: int = setting(4, 2, 12)  # relations in a question, at most
    spare_steps: int = setting(2, 0, 32)  # steps beyond one search a hop and the answer
    search_failure: float = setting(0.0, 0.0, 0.9)  # chance that a well-formed search finds nothing
    # The weakness of the demonstrator must be the mode of the data, not noise: random slips do not make
    # the greedy policy weaker.

    demo_lazy: float = setting(0.8, 0.0, 1.0)  # chance to answer too early
    demo_noise: float = setting(0.05, 0.0, 1.0)  # chance of a random query
    demo_retry: float = setting(0.9, 0.0, 1.0)  # chance to repeat a search that failed
    # Searches fail so often in demonstrations; None is search_failure. Where failures are rare, the
    # n-th search is nearly always about the n-th relation, and a model learns to count instead of
    # looking at what it has done: more failures in the warm start take that shortcut away.
    demo_search_failure: float | None = setting(None, 0.0, 0.9)

    def __post_init__(self) -> None:
        if self.min_hops > self.max_hops:
            raise ValueError(
                f"env.multihop.min_hops={self.min_hops} must be at most "
                f"env.multihop.max_hops={self.max_hops}"
            )


@dataclasses.dataclass(frozen=True)
class HouseholdConfig:
    """Household tasks in text, as in ALFWorld."""

    rooms: str = setting(
        "real", choices=("real", "generated")
    )  # ALFWorld's, or small generated ones
    # Of generated rooms; None = as in the real ones:
    max_receptacles: int | None = setting(None, 2)  # at most, in a room
    max_object_types: int | None = setting(None, 1)  # kinds of things at most, in a room

    # Kinds of tasks, by the names of ALFWorld, or [all].
    task_types: list[str] = dataclasses.field(default_factory=lambda: ["all"])
    max_steps: int = setting(30, 1, 200)  # of an episode
    remind: bool = True  # end every observation with the task, as StepPO's prompts do
    demo_wander: float = setting(0.0, 0.0, 1.0)  # chance a step that a demonstration walks about
    demo_slip: float = setting(0.0, 0.0, 1.0)  # chance a step of a wrong number in a command
    # Chance a step that a demonstration ends unfinished.
    demo_give_up: float = setting(0.0, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class WikiSearchConfig:
    """Questions answered by searching passages."""

    # A file of questions (JSONL, JSON, parquet), see docs/data.md; None = the sample that ships. Set both,
    # this and passages, or neither.
    questions: str | None = None
    # What is searched, a file or folder, see docs/data.md; None = the sample that ships.
    passages: str | None = None
    # Panels by name, the main one first, such as {hotpotqa: dev.jsonl, musique: musique.parquet}, all
    # of whose questions are held out; none = the questions of the split "valid" of `questions`.
    eval_questions: dict[str, str] = dataclasses.field(default_factory=dict)
    # Of the questions, to train and to evaluate on, such as [comparison] of HotpotQA; none = all.
    kinds: list[str] = dataclasses.field(default_factory=list)
    # Only questions that have one of these answers, such as ["yes", "no"]; none = all.
    answers: list[str] = dataclasses.field(default_factory=list)
    cache: str | None = None  # folder of indices; None = ~/.cache/steprl/wiki_search
    max_steps: int = setting(5, 1, 50)  # of an episode
    max_calls: int = setting(4, 1, 16)  # searches in one step
    hits: int = setting(5, 1, 50)  # passages that a search returns
    first_search: bool = True  # search for the question itself before the first step
    passage_length: int = setting(1200, 16)  # characters of a passage that are shown
    recent_issues: int = setting(3, 0)  # of the last problems, repeated in a rebuilt prompt
    # "rebuild": each step reads a prompt rendered from the state; "extend": what is new is added
    context: str = setting("rebuild", choices=("rebuild", "extend"))
    reward: str = setting(
        "exact_match", choices=("exact_match", "f1")
    )  # of the answer, against the accepted ones


@dataclasses.dataclass(frozen=True)
class MiniShopConfig:
    """A web shop with the rules of WebShop."""

    # JSONL, JSON or parquet; None = the small shop that ships. Both or neither of these:
    products: str | None = None  # what is sold
    goals: str | None = None  # what is to be bought

    other_docs: str | None = None  # documents that words are weighed by in a search
    score_mode: str = setting(
        "small", choices=("small", "full")
    )  # how a purchase is scored, as WebShop's sizes
    # "success": success_reward for a score of 1, -call_penalty for an action without a command (as in
    # StepPO); "binary": 1 or 0; "score": the score of what was bought
    reward: str = setting("success", choices=("success", "binary", "score"))
    success_reward: float = setting(10.0, 0.0)  # of a score of 1, where reward=success
    call_penalty: float = setting(0.1, 0.0)  # of an action without a command
    max_steps: int = setting(15, 1, 200)  # of an episode
    results: int = setting(50, 1)  # products that a search finds at most, ten a page
    tool_call: bool = True  # prompts ask for tool calls; False: for plain commands
    history_steps: int = setting(2, 0)  # steps that a rebuilt prompt repeats
    history_length: int = setting(1800, 0)  # characters of an observation in a rebuilt prompt
    text_length: int = setting(2000, 100)  # characters of a description
    # As env.wiki_search.context.
    context: str = setting("rebuild", choices=("rebuild", "extend"))


@dataclasses.dataclass(frozen=True)
class ErrandConfig:
    """Things to bring from place to place; a game on the device."""

    errands: int = setting(1, 1, 4)  # things to bring in one episode, each to a place of its own
    places: int = setting(8, 5, 14)  # of the room, at least two an errand
    objects: int = setting(6, 1, 12)  # things that lie about, the wanted ones among them
    hidden: bool = True  # wanted things lie in closed places and shall go to closed ones
    transform: bool = True  # things are wanted hot, clean or cold
    # Steps in which nothing that is said has an effect, at places that the task draws: of the best play's
    # steps the share 1 - idle_steps / (idle_steps + 4 to 8 an errand) matters.
    idle_steps: int = setting(0, 0, 64)
    spare_steps: int = setting(4, 0, 64)  # steps beyond those of an optimal player
    # The demonstrator of the warm start, who shirks what makes an errand long.
    demo_lazy: float = setting(0.6, 0.0, 1.0)  # chance an episode to shirk every errand
    demo_forget: float = setting(0.2, 0.0, 1.0)  # chance an errand to shirk it all the same
    demo_noise: float = setting(0.03, 0.0, 1.0)  # chance of a random command

    def __post_init__(self) -> None:
        if self.places < 2 * self.errands:
            raise ValueError(
                f"env.errand.places={self.places} must be at least 2 * env.errand.errands="
                f"{2 * self.errands}: each thing comes from and goes to a place of its own"
            )
        if self.objects < self.errands:
            raise ValueError(
                f"env.errand.objects={self.objects} must be at least "
                f"env.errand.errands={self.errands}: each errand brings another thing"
            )

    @property
    def horizon(self) -> int:
        """Steps of the best play, the same for every task: 4 to 8 an errand, and those that are idle."""
        return self.errands * (4 + 2 * self.hidden + 2 * self.transform) + self.idle_steps


@dataclasses.dataclass(frozen=True)
class ShopConfig:
    """A small shop; a game on the device."""

    goods: int = setting(8, 4, 12)  # kinds of goods: shirt, lamp, ...
    results: int = setting(2, 2, 4)  # products that a search lists, one of which fits
    # The best play takes purchases * (options + 3) steps.
    options: int = setting(5, 0, 12)  # groups of options of each product: size, pattern, ...
    purchases: int = setting(1, 1, 4)  # products to buy, one after the other
    spare_steps: int = setting(4, 0, 64)  # steps beyond those of an optimal player
    # Reward of the last purchase. "success": 1 if all that was bought fits, "score": the share of the wanted
    # colours and options that were bought
    reward: str = setting("success", choices=("success", "score"))
    # The demonstrator of the warm start takes short cuts in all purchases of an episode, or in none.
    demo_lazy: float = setting(0.7, 0.0, 1.0)  # chance an episode to buy without the last option
    demo_first: float = setting(0.4, 0.0, 1.0)  # chance an episode to open the first result
    demo_noise: float = setting(0.02, 0.0, 1.0)  # chance of a random search, place or choice


@dataclasses.dataclass(frozen=True)
class GameConfig:
    """What the games on the device share: multihop, errand, shop, and those of your own."""

    thought_tokens: int = setting(0, 0, 64)  # words of free thought before each command
    # Share of the reward that is paid for progress, the rest is for the task solved at last.
    progress_reward: float = setting(0.0, 0.0, 1.0)
    reward_delay: int = setting(0, 0)  # steps until progress is paid, at the end at the latest
    fatal_errors: float = setting(0.0, 0.0, 1.0)  # chance that a mistake ends the episode


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """The environment: which, and its settings."""

    # One that ships, or of another package; your own as module:function; none.
    name: str = "multihop"
    # Arguments of the function of an adapter, or of your own.
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    game: GameConfig = GameConfig()
    multihop: MultihopConfig = MultihopConfig()
    errand: ErrandConfig = ErrandConfig()
    shop: ShopConfig = ShopConfig()
    household: HouseholdConfig = HouseholdConfig()
    wiki_search: WikiSearchConfig = WikiSearchConfig()
    mini_shop: MiniShopConfig = MiniShopConfig()
