"""`MiniShop`: WebShop's rules behind the protocol of `steprl.envs`, as an environment by value."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index as as_integer
from pathlib import Path
from typing import Any

from steprl.envs import CONTEXTS
from steprl.envs.mini_shop.commands import LONGEST, STEP_TOOL, read_command
from steprl.envs.mini_shop.pages import SYSTEM, instructions, page, shorten, user_prompt
from steprl.envs.mini_shop.records import Goal
from steprl.envs.mini_shop.rules import ShopState, act, commands
from steprl.envs.mini_shop.scoring import SUCCESS, Score, full_score, small_score
from steprl.envs.mini_shop.shop import SPLITS, Shop, load_shop, small_shop
from steprl.tools.hermes import TAGS

SCORE_MODES = ("small", "full")
REWARDS = ("success", "binary", "score")


@dataclass(frozen=True, eq=False)
class MiniShop:
    """Buying what an instruction asks for in a shop of text pages. `mini_shop` makes one.

    A command, `search[words]` or `click[label]`, stands alone or in a call of `env_step`. Clicking
    "Buy Now" ends the episode with a score in [0, 1]; from .999 on it is a success.

    Attributes:
        shop: products and search.
        goals: task number i is goal `i % len(goals)`.
        score_mode: "small" (`small_score`) or "full" (`full_score`).
        reward: "success": `success_reward` for a success, minus `call_penalty` for an action in which
            there is no command, as StepPO has it; "binary": 1 for a success; "score": the score of
            what was bought. Everything else is 0.
        success_reward, call_penalty: see `reward`.
        max_steps: actions at most.
        results: products that a search finds at most.
        context: "rebuild": an observation is the whole user prompt, rendered from the state, and
            stands for all before; "extend": the first one says all, later ones show the page.
        tool_call: whether prompts ask for tool calls or for plain commands; both are understood.
        history_steps: steps before this one that a rebuilt prompt shows.
        history_length: characters of what was seen then.
        text_length: characters of a description, and of all features.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> env = mini_shop(context="extend")
        >>> state, text = env.reset(0)
        >>> state, text, *_ = env.step(state, "search[rain jacket]")
        >>> print(text.splitlines()[0])
        Search Results for: rain jacket
    """

    shop: Shop
    goals: Sequence[Goal]
    score_mode: str = "small"
    reward: str = "success"
    success_reward: float = 10.0
    call_penalty: float = 0.1
    max_steps: int = 15
    results: int = 50
    context: str = "rebuild"
    tool_call: bool = True
    history_steps: int = 2
    history_length: int = 1800
    text_length: int = 2000

    def __post_init__(self) -> None:
        for name, allowed in (
            ("score_mode", SCORE_MODES), ("reward", REWARDS), ("context", CONTEXTS),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r}; choose from {', '.join(allowed)}"
                )
        for name, minimum in (
            ("max_steps", 1), ("results", 1), ("history_steps", 0), ("history_length", 0),
            ("text_length", 100),
        ):  # fmt: skip
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}: {getattr(self, name)}; it starts at {minimum}")
        if not self.goals:
            raise ValueError("goals: there is none")

    @property
    def control_tags(self) -> tuple[str, ...]:
        """What its own texts hold and its quotations do not, see `Suite`."""
        return TAGS

    @property
    def system(self) -> str:
        """The system line."""
        return SYSTEM

    @property
    def tools(self) -> list[dict[str, Any]]:
        """`env_step` as chat templates take it; empty where plain commands are asked for."""
        return [STEP_TOOL] if self.tool_call else []

    def goal(self, task: int) -> Goal:
        """The goal of a task number."""
        if as_integer(task) < 0:
            raise ValueError(f"task: {task}; tasks are integers from 0 on")
        return self.goals[as_integer(task) % len(self.goals)]

    def admissible_commands(self, state: ShopState) -> tuple[str, ...]:
        """The commands that the page allows; any search stands as `search[<your query>]`."""
        return () if state.done else commands(self.shop, state)

    def privileged(self, state: ShopState) -> str:
        """What only the critic is told: the product of the goal, and the options still to select."""
        goal = self.goal(state.task)
        is_open, chosen = state.item == goal.asin, dict(state.options)
        offered = dict(self.shop.product(goal.asin).options)
        left = [
            value
            for name, value in goal.options
            if value in offered.get(name, ()) and not (is_open and chosen.get(name) == value)
        ]
        where = "open" if is_open else "to open"
        return f"{goal.asin}, {where}; to select: {', '.join(left) or 'nothing'}"

    def score(self, state: ShopState) -> Score:
        """How well the item of the state, with the options selected, meets the goal.

        Raises:
            ValueError: the state is on no item.
        """
        if not state.item:
            raise ValueError(f"state: there is no item to score on the page {state.page!r}")
        goal, product = self.goal(state.task), self.shop.product(state.item)
        if self.score_mode == "small":
            return small_score(goal, product, dict(state.options))
        return full_score(goal, self.shop.product(goal.asin), product, dict(state.options))

    def reset(self, task: int, key: Any = None) -> tuple[ShopState, str]:
        """The first state and observation of a task.

        Args:
            task: a non-negative integer.
            key: unused, nothing here is left to chance.

        Raises:
            ValueError: the task is negative.
        """
        self.goal(task)
        state = ShopState(task=as_integer(task))
        return state, self.prompt(state) if self.context == "rebuild" else self._first(state)

    def step(
        self, state: ShopState, action: str
    ) -> tuple[ShopState, str, float, bool, bool, dict[str, Any]]:
        """Obey one command; any text is allowed and costs a step.

        Returns:
            State, observation, reward, terminated (something was bought), truncated (`max_steps` are
            spent), and info: `success`; `valid` (the command could be obeyed), `reason` (why not, or
            ""); `command`; `score` (0 before something is bought), `bought` (its asin, or "") and
            `product_score`, `attribute_score`, `option_score`, `price_score`, see `Score`.
        """
        if state.done:
            bought = state.page == "done"
            info = self._info(state, "the episode is over", "")
            return state, "", 0.0, bought, not bought, info
        command, broken = read_command(action)
        seen = shorten(page(self.shop, state, self.text_length), self.history_length)
        next_state, reason = (
            (state, broken) if command is None else act(self.shop, state, command, self.results)
        )
        command_text = f"(no command: {broken})" if command is None else command.text
        history = (*state.history, (seen, shorten(command_text, LONGEST)))
        steps, bought = state.steps + 1, next_state.page == "done"
        next_state = dataclasses.replace(
            next_state,
            steps=steps,
            notice=reason,
            history=history[max(len(history) - self.history_steps, 0) :],
            done=bought or steps >= self.max_steps,
        )
        info = self._info(next_state, reason, "" if command is None else command.text)
        observation = (
            self.prompt(next_state) if self.context == "rebuild" else self._next(next_state)
        )
        reward = self._reward(info, command is None)
        return next_state, observation, reward, bought, next_state.done and not bought, info

    def metrics(self, infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Of an episode, from the `info` of its steps: score, success, and whether it bought."""
        last: Mapping[str, Any] = infos[-1] if infos else {}
        return {
            "score": float(last.get("score", 0.0)),
            "success": float(last.get("success", False)),
            "bought": float(bool(last.get("bought", ""))),
        }

    def prompt(self, state: ShopState) -> str:
        """The user prompt of a state."""
        return user_prompt(
            self.goal(state.task).instruction,
            page(self.shop, state, self.text_length),
            state.history,
            self.admissible_commands(state),
            min(state.steps + 1, self.max_steps),
            self.max_steps,
            self.tool_call,
        )

    def _first(self, state: ShopState) -> str:
        return "\n\n".join(
            (
                f"## Shopping Instruction\n{self.goal(state.task).instruction}",
                f"## Instructions\n{instructions(1, self.max_steps, self.tool_call)}",
                f"## Observation\n{page(self.shop, state, self.text_length)}",
            )
        )

    def _next(self, state: ShopState) -> str:
        last = (
            "" if state.done or state.steps + 1 < self.max_steps else "\nThe next step is the last."
        )
        return page(self.shop, state, self.text_length) + last

    def _reward(self, info: dict[str, Any], broken: bool) -> float:
        if self.reward == "score":
            return float(info["score"])
        if self.reward == "binary":
            return float(info["success"])
        return self.success_reward * info["success"] - self.call_penalty * broken

    def _info(self, state: ShopState, reason: str, command: str) -> dict[str, Any]:
        bought = state.page == "done"
        score = self.score(state) if bought else Score(0.0, 0.0, 0.0, 0.0, 0.0)
        return {
            "success": score.value >= SUCCESS,
            "valid": not reason,
            "reason": reason,
            "command": command,
            "score": score.value,
            "bought": state.item if bought else "",
            "product_score": score.product,
            "attribute_score": score.attributes,
            "option_score": score.options,
            "price_score": score.price,
        }


def mini_shop(
    products: str | Path | None = None,
    goals: str | Path | None = None,
    other_docs: str | Path | None = None,
    split: str = "train",
    **settings: Any,
) -> MiniShop:
    """The environment of the small shop that ships with the project, or of files.

    Args:
        products, goals: JSONL, JSON or parquet, see `load_shop`; both or neither.
        other_docs: documents that only count in the weights of words; only with the two.
        split: "train", "valid", "test" (of files only) or "all".
        **settings: of `MiniShop`.

    Raises:
        ValueError: products without goals, or the other way round; an unknown split, or one without
            goals; a row that lacks a field; a setting out of range.
        FileNotFoundError: a path does not exist.
        ImportError: `pip install 'steprl[search]'` is missing.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: {split!r}; choose from {', '.join((*SPLITS, 'all'))}")
    shop = _open(products, goals, other_docs)
    split_goals = shop.goals_of(split)
    if not split_goals:
        available = [name for name in SPLITS if shop.goals_of(name)]
        raise ValueError(
            f"split: no goal is of {split!r}; there are goals of {', '.join(available)}"
        )
    return MiniShop(shop, split_goals, **settings)


def open_splits(
    products: str | Path | None = None,
    goals: str | Path | None = None,
    other_docs: str | Path | None = None,
    **settings: Any,
) -> dict[str, MiniShop]:
    """An environment for each split that has goals, "train" first, all of one shop.

    Raises:
        ValueError: as `mini_shop`; or no goal is of "train".
        FileNotFoundError, ImportError: as `mini_shop`.
    """
    shop = _open(products, goals, other_docs)
    goals_by_split = {split: shop.goals_of(split) for split in SPLITS}
    if not goals_by_split["train"]:
        raise ValueError("goals: none is of the split 'train', so there is nothing to learn from")
    return {
        split: MiniShop(shop, split_goals, **settings)
        for split, split_goals in goals_by_split.items()
        if split_goals
    }


def _open(
    products: str | Path | None, goals: str | Path | None, other_docs: str | Path | None
) -> Shop:
    if (products is None) != (goals is None) or (products is None and other_docs is not None):
        raise ValueError(
            "products and goals belong together, and other_docs to them: give the paths of both, or none"
        )
    if products is None or goals is None:
        return small_shop()
    return load_shop(products, goals, other_docs)
