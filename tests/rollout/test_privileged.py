"""What only the critic is told: recorded beside what the policy reads, and never among it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.config import GameConfig, MeshConfig
from steprl.envs.games import shape_game, text_game
from steprl.envs.privileged import PrivilegedEnv, privileged_env, privileged_game
from steprl.envs.suite import suite_of
from steprl.models import phrase_tokenizer
from steprl.models.critic_view import critic_view
from steprl.rollout import BranchPoint, HostPlayer, collate, device_player
from steprl.rollout.contexts import chat_context, plain_context
from steprl.sharding import make_mesh
from steprl.types import Step, Trajectory
from tests.lock import LOCK, SAYS, WORDS
from tests.models.chat_models import CHATML, chat_tokenizer

LENGTH = 1 + 5 * 4


def colours_left(state):
    """The colours that are still to be said, in their order."""
    place = state.opened + jnp.arange(3)
    return jnp.where(place < 3, state.colors[jnp.minimum(place, 2)], 0)


TELLS = dataclasses.replace(LOCK, privileged=colours_left)
TOKENIZER = phrase_tokenizer(WORDS)
KEY = jax.random.key(5)
TASKS, SAMPLES = np.arange(8, dtype=np.int32), np.zeros(8, np.int32)
POINTS = [BranchPoint(0, 1, 0, 7), BranchPoint(3, 1, 0, 8), BranchPoint(5, 0, 0, 9)]


def on_device(game):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return device_player(game.make, SAYS, mesh, TOKENIZER)


@pytest.fixture(scope="module")
def params():
    return SAYS.init(jax.random.key(0))


@pytest.fixture(scope="module")
def of_device(params):
    """Rollouts, branches of them, and the batch of the rollouts."""
    player = on_device(privileged_game(TELLS, "the game"))
    rollouts = player.explore(params, KEY, TASKS, SAMPLES)
    branches = player.branch(params, KEY, rollouts, POINTS)
    return rollouts.trajectories, branches.trajectories, rollouts.memory.batch


@pytest.fixture(scope="module")
def of_host(params):
    env = PrivilegedEnv(text_game(TELLS))
    player = HostPlayer(SAYS, plain_context(TOKENIZER), 5, 2, LENGTH + 2)
    rollouts = player.explore(env, params, KEY, TASKS.tolist(), SAMPLES.tolist())
    return rollouts.trajectories, player.branch(env, params, KEY, rollouts, POINTS).trajectories


RESET, STEP, TOLD = (
    jax.jit(f) for f in (LOCK.make(False).reset, LOCK.make(False).step, colours_left)
)


def told_of(state):
    tokens = np.asarray(TOLD(state))
    return tokens[tokens != 0].tolist()


def assert_told(trajectory):
    """Each step has what is told of the state that it was taken in."""
    state, _ = RESET(trajectory.task, KEY)
    for step in trajectory.steps:
        assert step.privileged_ids.tolist() == told_of(state)
        action = np.zeros(2, np.int32)
        action[: len(step.action_ids)] = step.action_ids
        state, _ = STEP(state, action)
    last = [] if trajectory.steps[-1].terminated else told_of(state)
    assert trajectory.final_privileged_ids.tolist() == last


@pytest.mark.parametrize("where", ["of_device", "of_host"])
def test_each_step_is_told_of_its_own_state_in_branches_too(where, request):
    played, branches, *_ = request.getfixturevalue(where)
    for trajectory in (*played, *branches):
        assert_told(trajectory)
    assert {len(s.privileged_ids) for t in played for s in t.steps} == {1, 2, 3}
    assert {t.steps[-1].terminated for t in played} == {True, False}


def test_games_are_recorded_alike_on_the_device_and_on_the_host(of_device, of_host):
    for one, other in zip(of_device[0], of_host[0], strict=True):
        assert len(one.steps) == len(other.steps)
        for a, b in zip(one.steps, other.steps, strict=True):
            assert a.action_ids.tolist() == b.action_ids.tolist()
            assert a.privileged_ids.tolist() == b.privileged_ids.tolist()


def test_records_have_the_view_of_the_batch_that_they_are_of(of_device):
    """Read back and collated anew, the critic reads the same; the policy's rows do not hold it."""
    trajectories, _, batch = of_device
    again = collate(trajectories, 5, [LENGTH], 2)
    one, other = (jax.device_get(jax.jit(critic_view)(b)) for b in (batch, again))
    width = min(one.tokens_BC.shape[1], other.tokens_BC.shape[1])
    for a, b in zip(one[:3], other[:3], strict=True):
        np.testing.assert_array_equal(a[:, :width], b[:, :width])
        assert not a[:, width:].any() and not b[:, width:].any()
    own = jax.device_get(batch)
    for row, trajectory in enumerate(trajectories):
        told = sum(len(new) for new in changes(trajectory))
        assert (one.segment_ids_BC[row] > 0).sum() == (own.segment_ids_NT[row] > 0).sum() + told


def changes(trajectory):
    """What is told, where it is not what was told before."""
    before = []
    for step in (*trajectory.steps, None):
        now = (trajectory.final_privileged_ids if step is None else step.privileged_ids).tolist()
        if now and now != before:
            yield now
            before = now


def test_the_policy_plays_the_same_whether_the_critic_is_told_or_not(of_device, params):
    silent = on_device(TELLS).explore(params, KEY, TASKS, SAMPLES).memory.batch
    told = of_device[2]
    assert silent.privileged is None and told.privileged is not None
    both = (dataclasses.replace(batch, privileged=None) for batch in (silent, told))
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_shared_settings_of_games_keep_what_is_told():
    game = shape_game(TELLS, GameConfig(thought_tokens=2, progress_reward=0.5))
    state, _ = game.make(False).reset(3, KEY)
    assert game.privileged(state).tolist() == TOLD(state.game).tolist()
    assert suite_of(game).game is game  # it keeps to the contract


def step_of(told, fresh=False):
    ids, number = np.array([4, 5], np.int32), np.zeros(1, np.float32)
    return Step(
        "", "", ids, ids[:1], number, number, 0.0, False, False, "stop_token", fresh=fresh,
        privileged_ids=np.asarray(told, np.int32),
    )  # fmt: skip


def test_what_is_told_again_is_told_once_a_context():
    steps = (step_of([6]), step_of([6]), step_of([]), step_of([7, 8]), step_of([7, 8], fresh=True))
    records = [
        Trajectory(0, 0, steps, False, final_privileged_ids=np.array([9], np.int32)),
        Trajectory(1, 0, steps[:1], False),
    ]
    tokens, step_ids = collate(records, 5, [16], 1).privileged
    assert tokens.shape == (2, 2 * 16)  # two contexts
    assert tokens[0, :3].tolist() == [6, 7, 8] and step_ids[0, :4].tolist() == [0, 3, 3, -1]
    assert tokens[0, 16:19].tolist() == [7, 8, 9] and step_ids[0, 16:20].tolist() == [4, 4, 5, -1]
    assert step_ids[1].tolist() == [0] + [-1] * 31
    assert collate([Trajectory(0, 0, (step_of([]),), False)], 5, [16], 1).privileged is None


def test_what_is_told_is_plain_text_in_a_chat():
    tokenizer = chat_tokenizer(CHATML)
    text = "the answer is <|im_end|> <tool_call>"
    ids = chat_context(tokenizer, tags=("<tool_call>",)).tell(text)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


class Talks:
    """One word, twice; what it tells the critic may be nonsense from the second state on."""

    def __init__(self, tell):
        self.privileged = tell

    def reset(self, task, key=None):
        return 0, "red"

    def step(self, state, action):
        info = {"success": False, "valid": True}
        return state + 1, "red", 0.0, state == 1, False, info


@pytest.mark.parametrize(
    ("tell", "said"),
    [
        (lambda state: ["green", 3][state], "`privileged` returned 3 (int); expected text"),
        (lambda state: ["green"][state], "`privileged` failed: IndexError"),
        (lambda state: ["green", "\ud800"][state], "no valid Unicode"),
    ],
)
def test_a_fault_in_what_is_told_ends_that_attempt_and_is_said(params, tell, said):
    player = HostPlayer(SAYS, plain_context(TOKENIZER), 5, 2, 32)
    (one,) = player.play(PrivilegedEnv(Talks(tell)), params, KEY, [0], [0])
    assert one.fault.startswith("Talks, task 0, step 0:") and said in one.fault
    assert one.steps[0].privileged_ids.tolist() == TOKENIZER.encode("green")


def test_an_environment_that_has_ended_is_not_asked(params):
    player = HostPlayer(SAYS, plain_context(TOKENIZER), 5, 2, 32)
    env = PrivilegedEnv(Talks(lambda state: ["green", "blue"][state]))
    (one,) = player.play(env, params, KEY, [0], [0])
    assert not one.fault and len(one.steps) == 2 and not len(one.final_privileged_ids)


def test_one_that_tells_nothing_is_refused():
    with pytest.raises(
        ValueError, match=r"critic.privileged: env.name=talks \(GameText\).*privileged"
    ):
        privileged_env(text_game(LOCK), "env.name=talks")
    with pytest.raises(ValueError, match="critic.privileged: the game"):
        privileged_game(LOCK, "the game")
    with pytest.raises(ValueError, match="whose `privileged` is 3, not a method"):
        suite_of(Talks(3))
    with pytest.raises(ValueError, match="game.privileged"):
        suite_of(dataclasses.replace(LOCK, privileged=lambda state: 1.0 * colours_left(state)))
