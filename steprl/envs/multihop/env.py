"""The rules, in pure JAX on token arrays, for one episode; lifted by `vmap`.

A question such as "who is the mother of the founder of Ada ?" asks for the end of a chain that
starts at Ada. The graph is new in every episode, so nothing can be learnt by heart: the agent must
`search Ada founder`, read the name, `search` it with the next relation, and `answer` at last.

Relations of one chain are distinct, so that the next search follows from what was read and done, and
a search that failed can be repeated without counting.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from steprl.config import MultihopConfig
from steprl.envs.device_env import DeviceObservation
from steprl.envs.multihop import language as words


class MultihopState(NamedTuple):
    """All of an episode; a value, so keeping it is a snapshot."""

    graph: jax.Array  # [entities, relations] int32: the entity in that relation to each entity
    chain: jax.Array  # [max_hops + 1] int32: the entities on the way, the start first
    relations: jax.Array  # [max_hops] int32: the relations of the chain, in the order of searching
    hops: jax.Array  # [] int32
    found: jax.Array  # [] int32: hops of the chain found so far, in order
    turn: jax.Array  # [] int32: steps taken
    failed: jax.Array  # [] bool: the last search found nothing
    key: jax.Array  # decides which searches fail


@dataclasses.dataclass(frozen=True)
class Multihop:
    """`reset` and `step` on tokens.

    Chains are held out by their first two relations: with numbers a and b from 0, a chain belongs
    to the held-out split when (a + 2 b) mod 5 = 0. Training never has such a chain.
    """

    config: MultihopConfig = MultihopConfig()
    heldout: bool | jax.Array = False  # may be traced: one program serves both splits

    action_width = 4  # search <name> <relation> <end>
    observation_width = 1
    vocab_size = words.VOCAB_SIZE
    stop_ids: ClassVar[tuple[int, ...]] = (words.END_ID,)

    @property
    def prompt_width(self) -> int:
        """Tokens of the longest question."""
        return 2 * self.config.max_hops + 3

    @property
    def max_steps(self) -> int:
        """Steps of the longest question; a question of h hops allows h + 1 + spare_steps."""
        return self.config.max_hops + 1 + self.config.spare_steps

    def reset(self, task: jax.Array | int, key: jax.Array) -> tuple[MultihopState, jax.Array]:
        """The state and the tokens of the question, [prompt_width]; `task` fixes the question."""
        config = self.config
        entities, relations = config.num_entities, len(words.RELATIONS)
        split = jax.random.fold_in(jax.random.key(0), jnp.asarray(self.heldout, jnp.uint32))
        draw = jax.random.fold_in(split, task)
        graph_key, start_key, hops_key, chain_key = jax.random.split(draw, 4)
        graph = jax.random.randint(graph_key, (entities, relations), 0, entities, jnp.int32)
        start = jax.random.randint(start_key, (), 0, entities, jnp.int32)
        hops = jax.random.randint(hops_key, (), config.min_hops, config.max_hops + 1, jnp.int32)

        # A random order of the relations whose second is the first of the others that puts the
        # chain into its split.
        order = jax.random.permutation(chain_key, relations).astype(jnp.int32)
        in_split = ((order[0] + 2 * order) % 5 == 0) == self.heldout
        second = jnp.argmax(in_split & (jnp.arange(relations) > 0))
        order = order.at[1].set(order[second]).at[second].set(order[1])
        chain_relations = order[: config.max_hops]

        def follow(entity: jax.Array, relation: jax.Array) -> tuple[jax.Array, jax.Array]:
            return graph[entity, relation], graph[entity, relation]

        _, way = jax.lax.scan(follow, start, chain_relations)
        zero = jnp.zeros((), jnp.int32)
        state = MultihopState(
            graph=graph,
            chain=jnp.concatenate([start[None], way]),
            relations=chain_relations,
            hops=hops,
            found=zero,
            turn=zero,
            failed=jnp.zeros((), bool),
            key=key,
        )
        return state, self.question(state)

    def question(self, state: MultihopState) -> jax.Array:
        """ "who is the R_h of the ... of the R_1 of E ?" as tokens, right-padded."""
        place = jnp.arange(self.prompt_width)
        hop = state.hops - 1 - (place - 1) // 2  # the relation searched last is named first
        relation = (
            state.relations[jnp.clip(hop, 0, self.config.max_hops - 1)] + words.FIRST_RELATION
        )
        last = 2 * state.hops  # place of the final "of"
        tokens = jnp.where(place % 2 == 1, relation, words.OF_THE)
        tokens = jnp.where(place == 0, words.WHO, tokens)
        tokens = jnp.where(place == last, words.OF, tokens)
        tokens = jnp.where(place == last + 1, state.chain[0] + words.FIRST_ENTITY, tokens)
        tokens = jnp.where(place == last + 2, words.ASK, tokens)
        return jnp.where(place > last + 2, words.PAD_ID, tokens).astype(jnp.int32)

    def step(
        self, state: MultihopState, action: jax.Array
    ) -> tuple[MultihopState, DeviceObservation]:
        """One action of tokens, [action_width], padded with 0 behind its end token."""
        entities = self.config.num_entities
        verb, name, relation, end = action[0], action[1], action[2], action[3]
        entity, link = name - words.FIRST_ENTITY, relation - words.FIRST_RELATION
        is_name = (entity >= 0) & (entity < entities)
        is_relation = (link >= 0) & (link < len(words.RELATIONS))
        search = (verb == words.SEARCH) & is_name & is_relation & (end == words.END_ID)
        answer = (verb == words.ANSWER) & is_name & (relation == words.END_ID)

        chance = jax.random.uniform(jax.random.fold_in(state.key, state.turn))
        fails = chance < self.config.search_failure
        result = state.graph[
            jnp.clip(entity, 0, entities - 1), jnp.clip(link, 0, len(words.RELATIONS) - 1)
        ]
        hop = jnp.minimum(state.found, self.config.max_hops - 1)
        next_hop = (entity == state.chain[hop]) & (link == state.relations[hop])
        right = answer & (entity == state.chain[state.hops])

        token = jnp.where(fails, words.NO_RESULT, result + words.FIRST_ENTITY)
        reason = jnp.where(
            verb == words.SEARCH,
            words.BAD_SEARCH,
            jnp.where(verb == words.ANSWER, words.BAD_ANSWER, words.BAD_VERB),
        )
        token = jnp.where(search, token, jnp.where(answer, words.DONE, reason))
        turn = state.turn + 1
        advances = search & ~fails & next_hop & (state.found < state.hops)
        new_state = state._replace(
            found=state.found + advances.astype(jnp.int32),
            turn=turn,
            failed=search & fails,
        )
        limit = state.hops + 1 + self.config.spare_steps
        return new_state, DeviceObservation(
            tokens=token[None].astype(jnp.int32),
            reward=right.astype(jnp.float32),
            terminated=answer,
            truncated=~answer & (turn >= limit),
            valid=search | answer,
            success=right,
        )

    def distance(self, state: MultihopState) -> jax.Array:
        """[] int32: searches of the chain that are left, and the answer."""
        return state.hops - state.found + 1
