"""What a run will cost: by its settings, and by its first iterations."""

import io

import jax
import pytest
from rich.console import Console

from steprl.cli.progress import Watch
from steprl.session import abstract_params, setup
from steprl.train import Event
from steprl.train.estimate import Ahead, described, duration, left, measured, work_of
from tests.small import small_config

LONGER = (
    "trainer.total_training_steps=12",
    "trainer.test_freq=5",
    "trainer.save_freq=2",
    "rollout.n=2",
    "sft.steps=3",
    "eval.num_tasks=10",
)


@pytest.fixture(scope="module")
def session():
    return setup(small_config(*LONGER))


def test_what_the_settings_ask_for_is_known_before_anything_is_played(session):
    work = work_of(session)
    game = session.suite.game.make(False)
    assert work.episodes == 16 and (work.steps, work.action) == (game.max_steps, game.action_width)
    assert work.tokens == 12 * 16 * game.max_steps * game.action_width
    assert work.evaluations == 1 + 3  # before, after 5 and 10, and at the end
    assert work.evaluated == 2 * 10  # sampled and greedy
    assert work.kept == 3 + 1 and work.sft_steps == 3 and not work.long
    line = described(work)
    for part in (
        "a warm start of 3 updates",
        "12 iterations of 16 episodes",
        "4 evaluations of 20",
    ):
        assert part in line


def test_a_checkpoint_holds_the_parameters_and_two_moments_of_each(session):
    work, params = work_of(session), abstract_params(session)
    assert work.parameters == work.trained == sum(x.size for x in jax.tree.leaves(params))
    moments = 3 * 4 * work.parameters  # float32; what is carried between iterations is little
    assert moments <= work.checkpoint < 1.1 * moments


def test_a_run_that_goes_on_has_less_ahead_of_it(session):
    work = work_of(session, done=5)
    assert work.iterations == 7 and work.evaluations == 2 and work.sft_steps == 0


def test_frozen_parameters_are_not_counted_as_trained():
    work = work_of(setup(small_config("model.freeze=embed")))
    assert 0 < work.trained < work.parameters


def test_a_budget_of_tokens_bounds_what_is_sampled():
    work = work_of(setup(small_config(*LONGER, "trainer.token_budget=100")))
    iteration = work.episodes * work.steps * work.action
    assert work.tokens == 100 + iteration  # the iteration that passes it is finished


def row(step=10.0, gen=4.0, decoded=500.0, total=1000.0, **more):
    names = {"timing_s/step": step, "timing_s/gen": gen, "token/decoded": decoded}
    return names | {"token/total": total} | {f"timing_s/{k}": v for k, v in more.items()}


@pytest.mark.parametrize(
    ("overrides", "rows", "ahead"),
    [
        # 16 episodes are played in 4 s, so the 20 of an evaluation in 5.
        ((), [row()], Ahead(10 * 10.0 + 3 * 5.0, 5000.0, 10, 10.0, 3, 5.0)),
        ((), [row(8.0), row(12.0)], Ahead(10 * 10.0 + 3 * 5.0, 5000.0, 10, 10.0, 3, 5.0)),
        ((), [row(17.0, testing=7.0)], Ahead(10 * 10.0 + 3 * 7.0, 5000.0, 10, 10.0, 3, 7.0)),
        (("trainer.token_budget=2400",), [row()], Ahead(3 * 10.0 + 5.0, 1500.0, 3, 10.0, 1, 5.0)),
        (("trainer.token_budget=900",), [row()], Ahead(0.0, 0.0, 0, 10.0, 0, 5.0)),
    ],
)  # fmt: skip
def test_what_is_left_is_reckoned_from_iterations(session, overrides, rows, ahead):
    config = small_config(*LONGER, *overrides)
    assert measured(work_of(session), config, 2, rows) == pytest.approx(ahead)


def test_what_is_left_is_said_in_one_line():
    line = left(Ahead(6700.0, 1.23e6, 38, 170.0, 4, 60.0))
    assert line == (
        "about 1 h 52 min and 1.2 M sampled tokens are left: 38 iterations of 3 min, 4 evaluations of 60 s"
    )
    assert left(Ahead(9.0, 800, 1, 9.0, 0, 0)).endswith(
        "800 sampled tokens are left: 1 iteration of 9 s"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (45.2, "45 s"), (119.9, "2 min"), (3590, "1 h"), (6600, "1 h 50 min"),
     (49 * 3600, "2 d 1 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("overrides", "long"),
    [
        ((), False),
        (("sft.steps=10000000",), True),
        (("trainer.total_training_steps=1000000",), True),
    ],
)
def test_only_what_will_take_long_is_called_long(overrides, long):
    assert work_of(setup(small_config(*overrides))).long is long


def test_what_is_left_is_said_after_the_second_iteration_of_a_process():
    out = io.StringIO()
    watch = Watch(Console(file=out, width=200), lambda step, metrics: f"left at {step}")
    for step in (0, 7, 8, 9):  # an evaluation before, and a run that goes on behind iteration 6
        watch(Event("rl", step, 9, {"rollout/success_rate": 0.5}))
    assert [line for line in out.getvalue().splitlines() if "left" in line] == ["left at 8"]


@pytest.mark.parametrize(
    ("save_freq", "test_freq"), [(0, 0), (2, 0), (0, 5), (2, 5), (4, 6), (3, 3), (20, 7)]
)
def test_checkpoints_are_those_that_are_due_the_best_and_the_last(save_freq, test_freq):
    overrides = (f"trainer.save_freq={save_freq}", f"trainer.test_freq={test_freq}")
    work = work_of(setup(small_config(*LONGER, *overrides, "trainer.max_to_keep=99")))
    due = [i for f in (save_freq, test_freq) if f for i in range(f, 13, f)]
    assert work.kept == len({*due, 12})
