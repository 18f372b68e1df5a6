"""The rules, in pure JAX on token arrays, for one episode; lifted by `vmap`.

A miniature of household tasks such as ALFWorld's (https://arxiv.org/abs/2010.03768). The prompt says
what to bring from where to where, and how it is wanted: "bring the hot apple from the box to the desk."
The player starts at the door with free hands, and one thing can be carried. A command is a verb and a
noun: go and open take a place; take, put, heat, wash and cool take a thing. Places that are closed
must be opened before anything is taken out or put in; stove, sink and fridge make what is in the
hand hot, clean or cold, and undo what it was before. Every mistake can be undone.

Each errand has a source and a target of its own, so the best play of every task has the same number of
steps, `ErrandConfig.horizon`:

| horizon | errands | hidden | transform | play of one errand |
|---|---|---|---|---|
| 4 | 1 | no | no | go, take, go, put |
| 8 | 1 | yes | yes | go, open, take, go, heat, go, open, put |
| 16 | 2 | yes | yes | |
| 32 | 4 | yes | yes | |

With `idle_steps` some steps of an episode do not count: whatever is said in them is answered "nothing
happens", and nothing does. The task draws which ones: `idle_steps` of the first horizon - 1 steps, all
choices alike; horizon counts them, and from its last step on every step counts. So the best play takes
horizon steps in every task, as without them: it says a command again that was not heeded. The decision
density, the share of the best play's steps that matter, is 1 - idle_steps / horizon:

| horizon | density 1 | 1/2 | 1/4 | 1/8 |
|---|---|---|---|---|
| 16 | 2 errands | 1, 8 idle | 1 of 4 steps, 12 idle | |
| 32 | 4 errands | 2, 16 idle | 1, 24 idle | 1 of 4 steps, 28 idle |

A task is the same with idle steps and without, but for them; nothing announces one.
"""

import dataclasses
import itertools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steprl.config import ErrandConfig
from steprl.envs.device_env import DeviceObservation
from steprl.envs.errand import language as words

STATION = len(words.PLACES)  # the first of them, as a location
DOOR = len(words.LOCATIONS) - 1
HAND = len(words.LOCATIONS)  # where a thing is that is carried


class ErrandState(NamedTuple):
    """All of an episode; a value, so keeping it is a snapshot. The first things are the wanted ones."""

    kind: jax.Array  # [objects] int32: what each thing is; no two are the same
    where: jax.Array  # [objects] int32: its place, or HAND
    form: jax.Array  # [objects] int32: 0 as it comes, 1 hot, 2 clean, 3 cold
    target: jax.Array  # [errands] int32: the place that each wanted thing shall go to
    wanted: jax.Array  # [errands] int32: the form that it shall have
    moved: jax.Array  # [errands] bool: it was put somewhere at least once
    closed: jax.Array  # [places] bool
    here: jax.Array  # [] int32: location of the player
    turn: jax.Array  # [] int32: steps taken
    idle: jax.Array  # [horizon] bool: the step does not count; [0] where all do


@dataclasses.dataclass(frozen=True)
class Errand:
    """`reset` and `step` on tokens.

    Errands are held out by thing and target: with numbers a and b from 0, an errand belongs to the
    held-out split when (a + 2 b) mod 5 = 0. Training never has such an errand, and the held-out
    split has no other.
    """

    config: ErrandConfig = ErrandConfig()
    heldout: bool | jax.Array = False  # may be traced: one program serves both splits

    action_width = 2  # verb and noun, nothing ends it
    observation_width = 1
    vocab_size = words.VOCAB_SIZE
    stop_ids: ClassVar[tuple[int, ...]] = ()

    @property
    def prompt_width(self) -> int:
        """Tokens of the prompt."""
        return (6 + self.config.transform) * self.config.errands + 1

    @property
    def max_steps(self) -> int:
        """Steps of every episode."""
        return self.config.horizon + self.config.spare_steps

    def reset(self, task: jax.Array | int, key: jax.Array) -> tuple[ErrandState, jax.Array]:
        """The state and the prompt, [prompt_width]; `task` fixes both, nothing is left to chance."""
        config = self.config
        errands, places, objects = config.errands, config.places, config.objects
        split = jax.random.fold_in(jax.random.key(0), jnp.asarray(self.heldout, jnp.uint32))
        draw = jax.random.fold_in(split, task)
        # One draw for everything: a call of the generator is most of what a reset costs.
        sizes = np.cumsum([len(words.KINDS), places, objects - errands, errands])
        chance = jax.random.uniform(draw, (int(sizes[-1]) + places,))
        kind_draw, place_draw, lie_draw, form_draw, closed_draw = jnp.split(chance, sizes)

        # The wanted kinds differ mod 5, so that each finds a target of its own in either split.
        kind = _order(kind_draw)
        same = (kind[:, None] % 5 == kind[None, :] % 5) & np.tri(len(words.KINDS), k=-1, dtype=bool)
        kind = kind[_order(jnp.any(same, axis=1))][:objects]

        place = _order(place_draw)
        free, targets = jnp.ones(places, bool), []
        for errand in range(errands):
            in_split = ((kind[errand] + 2 * place) % 5 == 0) == self.heldout
            first = jnp.argmax(free & in_split)
            free &= jnp.arange(places) != first
            targets.append(place[first])
        target = jnp.stack(targets)
        source = place[_order(~free)][:errands]

        forms = 1 + (form_draw * len(words.FORMS)).astype(jnp.int32)
        elsewhere = (lie_draw * places).astype(jnp.int32)
        ends = jnp.concatenate([source, target])
        is_end = jnp.any(ends[:, None] == jnp.arange(places)[None, :], axis=0)
        state = ErrandState(
            kind=kind,
            where=jnp.concatenate([source, elsewhere]),
            form=jnp.zeros(objects, jnp.int32),
            target=target,
            wanted=forms if config.transform else jnp.zeros(errands, jnp.int32),
            moved=jnp.zeros(errands, bool),
            closed=jnp.where(is_end, config.hidden, closed_draw < 0.5),
            here=jnp.asarray(DOOR, jnp.int32),
            turn=jnp.zeros((), jnp.int32),
            idle=self._idle(draw),
        )
        return state, self._prompt(state)

    def _idle(self, draw: jax.Array) -> jax.Array:
        """Which steps do not count; the one that ends the best play does."""
        config = self.config
        if not config.idle_steps:
            return jnp.zeros(0, bool)
        chance = jax.random.uniform(jax.random.fold_in(draw, 1), (config.horizon - 1,))
        drawn = _order(chance)[: config.idle_steps]
        return jnp.zeros(config.horizon, bool).at[drawn].set(True)

    def _prompt(self, state: ErrandState) -> jax.Array:
        """ "bring the hot apple from the box to the desk, the ... ." as tokens."""
        errands = self.config.errands
        every = lambda token: jnp.full(errands, token, jnp.int32)  # noqa: E731
        columns = [
            every(words.AND).at[0].set(words.BRING),
            state.wanted + words.FIRST_FORM - 1,
            state.kind[:errands] + words.FIRST_KIND,
            every(words.FROM),
            state.where[:errands] + words.FIRST_LOCATION,
            every(words.TO),
            state.target + words.FIRST_LOCATION,
        ]
        if not self.config.transform:
            del columns[1]
        return jnp.append(jnp.stack(columns, axis=1).reshape(-1), words.STOP).astype(jnp.int32)

    def step(self, state: ErrandState, action: jax.Array) -> tuple[ErrandState, DeviceObservation]:
        """One command of two tokens, [2]. What cannot be done now is answered "nothing happens"."""
        now, seen = self._carry_out(state, action)
        if not self.config.idle_steps:
            return now, seen
        same = state._replace(turn=now.turn)
        truncated = now.turn >= self.max_steps
        nothing = jnp.full_like(seen.tokens, words.NOTHING)
        false, zero = jnp.zeros((), bool), jnp.zeros((), jnp.float32)
        unheeded = DeviceObservation(nothing, zero, false, truncated, seen.valid, false)
        idle = state.idle[jnp.minimum(state.turn, self.config.horizon - 1)]
        idle &= state.turn < self.config.horizon
        return jax.tree.map(lambda a, b: jnp.where(idle, a, b), (same, unheeded), (now, seen))

    def _carry_out(
        self, state: ErrandState, action: jax.Array
    ) -> tuple[ErrandState, DeviceObservation]:
        config, errands = self.config, self.config.errands
        verb, location = action[0] - words.FIRST_VERB, action[1] - words.FIRST_LOCATION
        is_verb = (verb >= 0) & (verb < len(words.VERBS))
        is_location = (location >= 0) & (location < len(words.LOCATIONS))
        kind = action[1] - words.FIRST_KIND
        is_kind = (kind >= 0) & (kind < len(words.KINDS))
        about_place = verb <= words.OPEN
        valid = is_verb & jnp.where(about_place, is_location, is_kind)

        here, held = state.here, state.where == HAND
        place = jnp.arange(config.places)
        is_station = (location >= STATION) & (location < DOOR)
        exists = (location < config.places) | (location == DOOR) | (is_station & config.transform)
        open_here = jnp.any((place == here) & ~state.closed)
        is_named = valid & (state.kind == kind)

        goes = valid & (verb == words.GO) & exists
        opens = valid & (verb == words.OPEN) & (location == here) & (place == here) & state.closed
        takes = is_named & (verb == words.TAKE) & (state.where == here) & open_here & ~jnp.any(held)
        puts = is_named & (verb == words.PUT) & held & open_here
        at_station = (here >= STATION) & (here - STATION == verb - words.HEAT)
        changes = is_named & held & at_station

        now = state._replace(
            where=jnp.where(takes, HAND, jnp.where(puts, here, state.where)),
            form=jnp.where(changes, verb - words.HEAT + 1, state.form),
            moved=state.moved | puts[:errands],
            closed=state.closed & ~opens,
            here=jnp.where(goes, location, here),
            turn=state.turn + 1,
        )
        done = delivered(now)
        success = jnp.all(done)

        token = jnp.where(valid, words.NOTHING, words.BAD_THING)
        token = jnp.where(~valid & about_place, words.BAD_PLACE, token)
        token = jnp.where(is_verb, token, words.BAD_VERB)
        token = jnp.where(goes | jnp.any(opens), _sight(now), token)
        token = jnp.where(jnp.any(takes), words.TAKEN, token)
        arrived = jnp.any(done & puts[:errands])
        token = jnp.where(jnp.any(puts), jnp.where(arrived, words.DELIVERED, words.DROPPED), token)
        token = jnp.where(jnp.any(changes), words.FIRST_CHANGE + verb - words.HEAT, token)
        return now, DeviceObservation(
            tokens=token[None].astype(jnp.int32),
            reward=success.astype(jnp.float32),
            terminated=success,
            truncated=~success & (now.turn >= self.max_steps),
            valid=valid,
            success=success,
        )

    def distance(self, state: ErrandState) -> jax.Array:
        """[] int32: steps of an optimal player, from any state of an open episode."""
        steps = route(state)[0]
        if not self.config.idle_steps:
            return steps
        # Idle steps that come before the last of those that count.
        turn = jnp.arange(self.config.horizon)
        counts = (turn >= state.turn) & ~state.idle
        before = jnp.cumsum(counts) - counts
        waits = (turn >= state.turn) & state.idle & (before < steps)
        return steps + jnp.sum(waits, dtype=jnp.int32)


def _order(value_n: jax.Array) -> jax.Array:
    """[n] int32: what `argsort` gives, stable. All against all is quicker to compile than a sort."""
    index = np.arange(value_n.shape[0], dtype=np.int32)
    before = value_n[None, :] < value_n[:, None]
    before |= (value_n[None, :] == value_n[:, None]) & (index[None, :] < index[:, None])
    rank = jnp.sum(before, axis=1)
    return jnp.argmax(rank[None, :] == index[:, None], axis=1).astype(jnp.int32)


def _sight(state: ErrandState) -> jax.Array:
    """Token of what is seen where the player is: one thing, a wanted one if any, or why none."""
    lies = state.where == state.here
    kind = state.kind[jnp.argmax(lies)]
    token = jnp.where(jnp.any(lies), words.FIRST_SIGHT + kind, words.EMPTY)
    token = jnp.where(closed_here(state), words.CLOSED, token)
    return jnp.where(state.here >= STATION, words.THERE, token)


def closed_here(state: ErrandState) -> jax.Array:
    """[] bool: the player is at a closed place."""
    return jnp.any(state.closed & (jnp.arange(state.closed.shape[0]) == state.here))


def delivered(state: ErrandState) -> jax.Array:
    """[errands] bool: the thing lies at its target in its form."""
    errands = state.target.shape[0]
    return (state.where[:errands] == state.target) & (state.form[:errands] == state.wanted)


def route(state: ErrandState) -> tuple[jax.Array, jax.Array]:
    """Steps of an optimal player, and the errand that is next: that of the thing in hand, if any.

    Each errand costs what it needs alone; a place is opened once; a wrong thing in hand is put down
    at the next place, for one step. A walk to a thing is saved where the errand before ends beside it,
    so what is left is the best of all orders of the errands.

    Returns:
        [] int32, [] int32.
    """
    errands, places = state.target.shape[0], state.closed.shape[0]
    at, ready = state.where[:errands], state.form[:errands] == state.wanted
    held, left = at == HAND, ~delivered(state)
    waiting = left & ~held  # lie somewhere
    count = lambda flags: jnp.sum(flags, dtype=jnp.int32)  # noqa: E731

    near = held & (state.here == jnp.where(ready, state.target, STATION + state.wanted - 1))
    # go and take; go and transform; go and put
    alone = 2 * count(waiting) + 2 * count(left & ~ready) + 2 * count(left) - count(near)
    place = jnp.arange(places)[None, :]
    visits = waiting[:, None] & (at[:, None] == place)
    visits |= left[:, None] & (state.target[:, None] == place)
    opens = count(jnp.any(visits, axis=0) & state.closed)
    wrong = count(state.where[errands:] == HAND)

    start = jnp.where(jnp.any(held), jnp.sum(jnp.where(held, state.target, 0)), state.here)
    order = np.array(list(itertools.permutations(range(errands))))  # [K, errands]
    stand, saved = jnp.broadcast_to(start, order.shape[:1]), jnp.zeros(order.shape[:1], jnp.int32)
    for errand in order.T:
        saved += waiting[errand] & (at[errand] == stand)
        stand = jnp.where(waiting[errand], state.target[errand], stand)
    best = jnp.asarray(order)[jnp.argmax(saved)]
    following = jnp.where(jnp.any(held), jnp.argmax(held), best[jnp.argmax(waiting[best])])
    return alone + opens + wrong - jnp.max(saved), following.astype(jnp.int32)
