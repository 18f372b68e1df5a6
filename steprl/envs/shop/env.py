"""The rules, in pure JAX on token arrays, for one episode; lifted by `vmap`.

"buy a red shirt large striped." asks for a kind of goods, its colour, and a value of each group of
options. The agent must `search shirt`, `open` the place of the list that is red, `choose large`,
`choose striped` and `buy now`. Several products are bought one after the other, in the order asked.
Nothing is lost by a detour but steps; a wrong purchase stays.

The goods of a list are of one kind and of different colours. They are new in every episode, so
nothing can be learnt by heart. The rules follow WebShop (https://arxiv.org/abs/2207.01206).
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steprl.config import ShopConfig
from steprl.envs.device_env import DeviceObservation
from steprl.envs.shop import language as words


class ShopState(NamedTuple):
    """All of an episode; a value, so keeping it is a snapshot. Kinds, colours ... are numbers from 0."""

    shelf: jax.Array  # [goods, results] int32: colours that a search lists, by kind
    kinds: jax.Array  # [purchases] int32: what is wanted
    colours: jax.Array  # [purchases] int32
    values: jax.Array  # [purchases, options] int32: of words.OPTIONS
    listed: jax.Array  # [] int32: kind of the list, -1 before a search
    place: jax.Array  # [] int32: place in the list of the open page, -1 without
    chosen: jax.Array  # [options] int32: of words.OPTIONS, -1 for none
    bought: jax.Array  # [] int32: purchases made
    fits: jax.Array  # [] int32: wanted properties that they have
    lost: jax.Array  # [] int32: distance when the first of them went wrong, 0 while none has
    turn: jax.Array  # [] int32: steps taken


@dataclasses.dataclass(frozen=True)
class Shop:
    """`reset` and `step` on tokens.

    The best play of a purchase is to search, to open, a choice for each group of options, and to buy:
    `options + 3` steps, and `horizon = purchases * (options + 3)` for all of them. So (options,
    purchases) of (1, 1), (5, 1), (5, 2) and (5, 4) have horizons of 4, 8, 16 and 32. All episodes of
    a setting have the same, and end after `horizon + spare_steps`.

    Wishes are held out by kind and colour: with numbers k and c from 0, a pair belongs to the held-out
    split when (k + 2 c) mod 5 = 0. Training never wants such a pair, though it may be listed.
    """

    config: ShopConfig = ShopConfig()
    heldout: bool | jax.Array = False  # may be traced: one program serves both splits

    action_width = 2
    vocab_size = words.VOCAB_SIZE
    stop_ids: ClassVar[tuple[int, ...]] = ()  # every command has two tokens

    @property
    def prompt_width(self) -> int:
        """Tokens of the wishes."""
        return self.config.purchases * (self.config.options + 3) + 1

    @property
    def observation_width(self) -> int:
        """Tokens of a list: place and colour of each result."""
        return 2 * self.config.results

    @property
    def horizon(self) -> int:
        """Steps of the best play."""
        return self.config.purchases * (self.config.options + 3)

    @property
    def max_steps(self) -> int:
        """Steps of the longest episode."""
        return self.horizon + self.config.spare_steps

    def reset(self, task: jax.Array | int, key: jax.Array) -> tuple[ShopState, jax.Array]:
        """The state and the tokens of the wishes, [prompt_width]; `task` alone fixes both."""
        config = self.config
        goods, results, purchases = config.goods, config.results, config.purchases
        number, options = len(words.COLOURS), config.options
        split = jax.random.fold_in(jax.random.key(0), jnp.asarray(self.heldout, jnp.uint32))
        # All numbers at once: each call of a generator costs a second to compile.
        wish_shapes = ((purchases, number), (purchases, options), (purchases, 1))
        shapes = ((goods,), (goods, number), *wish_shapes)
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        drawn = jax.random.uniform(jax.random.fold_in(split, task), (ends[-1],))
        parts = zip(jnp.split(drawn, ends[:-1]), shapes, strict=True)
        which, order, hue, value, spot = (part.reshape(shape) for part, shape in parts)

        kinds = jnp.argsort(which)[:purchases].astype(jnp.int32)
        pair = kinds[:, None] + 2 * jnp.arange(number)[None, :]
        in_split = (pair % 5 == 0) == self.heldout
        colours = jnp.argmax(jnp.where(in_split, hue, -1.0), axis=1).astype(jnp.int32)
        value = (words.VALUES * value).astype(jnp.int32)
        values = value + words.VALUES * jnp.arange(options)[None, :]

        # Any colours in any order; then the wanted one changes places with one of the list.
        shelf = jnp.argsort(order, axis=1)
        place = (results * spot).astype(jnp.int32)
        row, wanted = shelf[kinds], colours[:, None]
        out = jnp.take_along_axis(row, place, axis=1)
        row = jnp.where(row == wanted, out, row)
        row = jnp.where(jnp.arange(number)[None, :] == place, wanted, row)
        shelf = shelf.at[kinds].set(row)[:, :results]

        zero = jnp.zeros((), jnp.int32)
        state = ShopState(
            shelf=shelf.astype(jnp.int32),
            kinds=kinds,
            colours=colours,
            values=values.astype(jnp.int32),
            listed=zero - 1,
            place=zero - 1,
            chosen=jnp.full(config.options, -1, jnp.int32),
            bought=zero,
            fits=zero,
            lost=zero,
            turn=zero,
        )
        return state, self.wishes(state)

    def wishes(self, state: ShopState) -> jax.Array:
        """ "buy a C K V_1 ... V_n then a ... ." as tokens."""
        first = jnp.arange(self.config.purchases)[:, None] == 0
        each = jnp.concatenate(
            [
                jnp.where(first, words.BUY_A, words.THEN_A),
                state.colours[:, None] + words.FIRST_COLOUR,
                state.kinds[:, None] + words.FIRST_KIND,
                state.values + words.FIRST_OPTION,
            ],
            axis=1,
        )
        return jnp.append(each.reshape(-1), words.STOP).astype(jnp.int32)

    def step(self, state: ShopState, action: jax.Array) -> tuple[ShopState, DeviceObservation]:
        """One command of two tokens."""
        config = self.config
        verb, word = action[0], action[1]
        kind, place = word - words.FIRST_KIND, word - words.FIRST_PLACE
        option = word - words.FIRST_OPTION
        searches = (verb == words.SEARCH) & (kind >= 0) & (kind < len(words.KINDS))
        opens = (verb == words.OPEN) & (place >= 0) & (place < len(words.PLACES))
        chooses = (verb == words.CHOOSE) & (option >= 0) & (option < len(words.OPTIONS))
        buys = (verb == words.BUY) & (word == words.NOW)
        back = (verb == words.BACK) & (word == words.TO_LIST)
        valid = searches | opens | chooses | buys | back

        on_page = state.place >= 0
        searches = searches & (kind < config.goods)
        opens = opens & ~on_page & (state.listed >= 0) & (place < config.results)
        chooses = chooses & on_page & (option < words.VALUES * config.options)
        buys, back = buys & on_page, back & on_page

        listed = jnp.where(searches, kind, jnp.where(buys, -1, state.listed))
        here = jnp.where(opens, place, jnp.where(searches | buys | back, -1, state.place))
        group = jnp.arange(config.options) == option // words.VALUES
        chosen = jnp.where(chooses & group, option, state.chosen)
        chosen = jnp.where(on_page & (here >= 0), chosen, -1)  # another page begins anew

        bought = jnp.minimum(state.bought + buys, config.purchases)
        fits = state.fits + jnp.where(buys, self.fitting(state), 0)
        fails = buys & (fits < bought * (config.options + 1)) & (state.lost == 0)
        ends = buys & (bought == config.purchases)
        share = fits / (config.purchases * (config.options + 1))
        success = ends & (share == 1)
        reward = jnp.where(ends, share if config.reward == "score" else success, 0)

        turn = state.turn + 1
        new_state = state._replace(
            listed=listed,
            place=here,
            chosen=chosen,
            bought=bought,
            fits=fits,
            lost=jnp.where(fails, self.distance(state), state.lost),
            turn=turn,
        )
        token = jnp.where(chooses, words.CHOSEN, jnp.where(buys, words.BOUGHT, words.NOTHING))
        token = jnp.where(valid, token, _reason(verb))
        return new_state, DeviceObservation(
            tokens=self._seen(new_state, searches | back, opens, token),
            reward=reward.astype(jnp.float32),
            terminated=ends,
            truncated=~ends & (turn >= self.max_steps),
            valid=valid,
            success=success,
        )

    def _seen(
        self, state: ShopState, lists: jax.Array, opens: jax.Array, token: jax.Array
    ) -> jax.Array:
        """A list, the head of a page, or one token; [observation_width] int32."""
        width = self.observation_width
        row = state.shelf[state.listed] + words.FIRST_COLOUR
        places = jnp.arange(self.config.results) + words.FIRST_PLACE
        page = jnp.stack([row[state.place], state.listed + words.FIRST_KIND])
        tokens = jnp.where(opens, page, jnp.stack([token, jnp.zeros_like(token)]))
        tokens = jnp.pad(tokens, (0, width - 2))
        listing = jnp.stack([places, row], axis=1).reshape(width)
        return jnp.where(lists, listing, tokens).astype(jnp.int32)

    def fitting(self, state: ShopState) -> jax.Array:
        """[] int32: wanted properties of the open page; none of goods of another kind."""
        now = jnp.minimum(state.bought, self.config.purchases - 1)
        colour = state.shelf[state.listed, state.place] == state.colours[now]
        fits = colour + jnp.sum(state.chosen == state.values[now])
        return jnp.where(state.listed == state.kinds[now], fits, 0).astype(jnp.int32)

    def distance(self, state: ShopState) -> jax.Array:
        """[] int32: steps that are left to an optimal player, whatever was done before.

        After a wrong purchase there is no success to come nearer to, and the distance stays what it
        was before it: nothing is gained by that purchase or by any later step.
        """
        steps = self.config.options + 3
        now = jnp.minimum(state.bought, self.config.purchases - 1)
        kind = state.listed == state.kinds[now]
        right = kind & (state.shelf[state.listed, state.place] == state.colours[now])
        on_page = state.place >= 0
        to_choose = jnp.sum(state.chosen != state.values[now])
        left = jnp.where(kind & ~on_page, steps - 1, steps)
        left = jnp.where(on_page & right, to_choose + 1, left)
        left = left + (self.config.purchases - 1 - now) * steps
        return jnp.where(state.lost > 0, state.lost, left).astype(jnp.int32)


def _reason(verb: jax.Array) -> jax.Array:
    """Why a command is invalid."""
    reason = jnp.asarray(words.BAD_VERB)
    for wrong, why in (
        (words.SEARCH, words.BAD_SEARCH),
        (words.OPEN, words.BAD_OPEN),
        (words.CHOOSE, words.BAD_CHOOSE),
        (words.BUY, words.BAD_BUY),
        (words.BACK, words.BAD_BACK),
    ):
        reason = jnp.where(verb == wrong, why, reason)
    return reason
