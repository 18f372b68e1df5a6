"""A run: stopped and resumed it is the same run, what breaks is saved, and few things compile."""

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.checkpoint import DamagedCheckpoint, all_steps, restore
from steprl.config import load_config
from steprl.disk import WriteError
from steprl.envs.answers import EnvironmentFailed
from steprl.interrupts import Stopped
from steprl.metrics import STEP, read_metrics
from steprl.optimizer import make_optimizer
from steprl.rollout import read_rows
from steprl.session import abstract_params, initial_params, load_params, load_step, setup
from steprl.train import train
from steprl.update import initial_state
from tests.small import SMALL, small_config

# Enough of a warm start that some tasks are solved, so that there is something to learn from.
LEARNS = ("sft.steps=40", "sft.lr=2e-2", "sft.save_freq=30", "trainer.total_training_steps=4")
CLOCKS = ("timing_s/", "perf/", "compile/")


def state_of(session, run, step=None):
    """The whole train state of a checkpoint."""
    config = session.config
    optimizer = make_optimizer(config.actor, config.critic, 1)
    shapes = jax.eval_shape(
        lambda p: initial_state(p, optimizer, config),
        abstract_params(session),
    )
    return jax.device_get(restore(run / "checkpoints", shapes, step).state)


def rows_of(run, name="metrics.jsonl"):
    """Metrics without what the clock says."""
    return [
        {key: value for key, value in row.items() if not key.startswith(CLOCKS)}
        for row in read_metrics(run / name)
    ]


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def assert_same_run(session, run, other):
    assert_same_bits(state_of(session, run), state_of(session, other))
    assert rows_of(run) == rows_of(other)
    assert rows_of(run, "sft.jsonl") == rows_of(other, "sft.jsonl")


def at(phase, step, act):
    """A watcher that does something when a step is reported."""

    def watch(event):
        if (event.phase, event.step) == (phase, step):
            act()

    return watch


def control_c():
    signal.raise_signal(signal.SIGINT)


def told_to_stop(session, what, when):
    """The session, whose player is told to stop in the middle of the n-th call of something."""
    calls = []

    def told(act):
        def wrapped(*args, **kwargs):
            calls.append(what)
            if len(calls) == when:
                signal.raise_signal(signal.SIGTERM)
            return act(*args, **kwargs)

        return wrapped

    act = getattr(session.player, what)
    wrapped = (lambda *plan: told(act(*plan))) if what == "gather" else told(act)
    return session._replace(player=session.player._replace(**{what: wrapped}))


def flipped(run):
    """Name of the file that `with_damage` changes."""
    files = (run / "checkpoints" / "2").rglob("d/*")
    return max(files, key=lambda f: f.stat().st_size).relative_to(run / "checkpoints" / "2")


def with_damage(run, step):
    """Adds two steps behind the newest: one with a flipped bit, and an empty one."""
    folder = run / "checkpoints"
    damaged = shutil.copytree(folder / str(step), folder / str(step + 1))
    file = max(damaged.rglob("d/*"), key=lambda f: f.stat().st_size)
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    (folder / str(step + 2)).mkdir()


def put_line(file, number, line):
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:number], line + "\n", *lines[number:]]))


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


class Killed(BaseException):
    """The process ends here: nothing may be cleaned up after it."""


def kill():
    raise Killed


@pytest.fixture(scope="module")
def session():
    return setup(small_config(*LEARNS))


@pytest.fixture(scope="module")
def whole(session, tmp_path_factory):
    """The run that nothing disturbed, and the names of what it compiled."""
    run = tmp_path_factory.mktemp("whole")
    params, compiled = train(session, run)
    return run, params, compiled


@pytest.fixture(scope="module")
def warm(whole, tmp_path_factory):
    """A run directory right behind the warm start."""
    run = tmp_path_factory.mktemp("warm")
    shutil.copytree(whole[0] / "sft", run / "sft")
    shutil.copy(whole[0] / "sft.jsonl", run)
    return run


@pytest.fixture
def from_warm(warm, tmp_path):
    return shutil.copytree(warm, tmp_path / "run")


def shorter(session, steps):
    """The same session with fewer iterations: what is compiled is shared."""
    config = load_config(None, [*SMALL, *LEARNS, f"trainer.total_training_steps={steps}"])
    return session._replace(config=config)


# Bit for bit


def test_the_run_learns_from_rewards(whole, session):
    """What the laws below are worth: something is solved, and all parameters move."""
    run, params, _ = whole
    rows = rows_of(run)
    assert max(row.get("critic/rewards/max", 0) for row in rows) == 1
    assert any(row.get("actor/grad_norm", 0) > 1e-3 for row in rows)
    start = jax.device_get(initial_params(session))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), jax.device_get(params), start)
    assert all(jax.tree.leaves(moved))


def test_n_iterations_and_n_more_are_two_n(whole, session, from_warm):
    # Without files of trajectories, which therefore change nothing.
    first = shorter(session, 2)
    silent = dataclasses.replace(first.config.trainer, save_trajectories=0)
    train(first._replace(config=dataclasses.replace(first.config, trainer=silent)), from_warm)
    assert not (from_warm / "trajectories").exists()
    assert [row[STEP] for row in rows_of(from_warm)] == [0, 1, 2]
    assert int(state_of(session, from_warm).iteration) == 2
    params, _ = train(session, from_warm)
    # The end of the short run was evaluated, which the long one does at its own end only.
    short = [row for row in rows_of(from_warm) if row[STEP] == 2][0]
    assert "eval/success_rate" in short
    assert_same_bits(state_of(session, from_warm), state_of(session, whole[0]))
    assert_same_bits(jax.device_get(params), jax.device_get(whole[1]))
    plain = [{k: v for k, v in row.items() if row[STEP] != 2 or "eval/" not in k}
             for row in rows_of(from_warm)]  # fmt: skip
    assert plain == rows_of(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("step", [13, 30])
def test_a_warm_start_that_is_interrupted_goes_on(whole, session, tmp_path, step):
    """At any step, not only where one is reported."""
    with pytest.raises(Stopped):
        train(told_to_stop(session, "demonstrate", step), tmp_path)
    assert all_steps(tmp_path / "sft") == [step]
    assert not (tmp_path / "metrics.jsonl").exists()
    train(session, tmp_path)
    assert_same_run(session, tmp_path, whole[0])


@pytest.mark.slow
@pytest.mark.full
def test_a_stop_during_an_evaluation_or_a_rollout_ends_that_iteration(whole, session, from_warm):
    overrides = ("trainer.test_freq=1", "trainer.val_before_train=false", "eval.greedy=false")
    often = session._replace(config=small_config(*LEARNS, *overrides))
    with pytest.raises(Stopped):
        train(told_to_stop(often, "play", 1), from_warm)
    assert all_steps(from_warm / "checkpoints") == [1]
    with pytest.raises(Stopped):
        train(told_to_stop(often, "gather", 1), from_warm)
    assert all_steps(from_warm / "checkpoints") == [1, 2]
    assert [row[STEP] for row in rows_of(from_warm)] == [1, 2]


def test_after_a_second_control_c_nothing_more_is_saved(session, from_warm):
    def twice():
        control_c()
        control_c()

    with pytest.raises(KeyboardInterrupt) as caught:
        train(session, from_warm, at("rl", 0, twice))
    assert not isinstance(caught.value, Stopped)
    assert all_steps(from_warm / "checkpoints") == []


def test_a_training_that_is_interrupted_is_saved_and_goes_on_whatever_is_damaged_meanwhile(
    whole, session, from_warm, caplog
):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        train(session, from_warm, at("rl", 1, control_c))
    # Told at the end of iteration 1, it ends with the next one.
    assert all_steps(from_warm / "checkpoints") == [2] and stopped.value.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    with_damage(from_warm, 2)
    put_line(from_warm / "metrics.jsonl", 1, "garbage")
    caplog.clear()
    train(session, from_warm)
    assert_same_run(session, from_warm, whole[0])
    # What was damaged is kept, and the steps that are saved anew have its names.
    saved = {path.name for path in (from_warm / "checkpoints").iterdir()}
    assert saved == {"2", "4", "3.damaged", "4.damaged"}
    assert (from_warm / "metrics.jsonl.damaged").read_text() == "garbage\n"
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == (
        f"{from_warm / 'checkpoints'}: step 4 is damaged, state is missing; step 3 is damaged, "
        f"{flipped(from_warm)} has other bytes than were written; going back to step 2"
    )
    assert "metrics.jsonl, line 2 is no row of metrics" in said[-1]


@pytest.mark.slow
def test_an_interrupt_in_the_last_iteration_lets_the_run_finish(whole, session, from_warm):
    train(session, from_warm, at("rl", 3, control_c))
    assert_same_run(session, from_warm, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1])
def test_a_run_that_is_killed_before_its_first_checkpoint_writes_no_row_twice(
    whole, session, from_warm, step
):
    with pytest.raises(Killed):
        train(session, from_warm, at("rl", step, kill))
    assert all_steps(from_warm / "checkpoints") == []
    train(session, from_warm)
    assert_same_run(session, from_warm, whole[0])


KILLED = """
import os, signal, sys, time
from pathlib import Path
from steprl.metrics import MetricWriter
from steprl.session import setup
from steprl.train import train
from tests.small import small_config

row = MetricWriter.write

def write(self, step, metrics):
    if step == 3:  # is saved, and its row is not written
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)
    row(self, step, metrics)

MetricWriter.write = write
train(setup(small_config(*sys.argv[2:])), Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.full
def test_a_process_that_is_killed_between_a_checkpoint_and_its_row_leaves_the_run_whole(
    whole, session, from_warm
):
    """Really killed, with these devices, so that the run is the same bit for bit."""
    words = [str(from_warm), *LEARNS, "trainer.save_freq=1"]
    process = subprocess.run([sys.executable, "-c", KILLED, *words], env=os.environ)
    assert process.returncode == -signal.SIGKILL
    assert all_steps(from_warm / "checkpoints") == [1, 2, 3]
    assert [row[STEP] for row in rows_of(from_warm)] == [0, 1, 2]
    train(session, from_warm)
    assert_same_run(session, from_warm, whole[0])


def test_a_run_that_is_finished_stays_as_it_is(whole, session, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    params, _ = train(session, run)
    assert_same_bits(jax.device_get(params), jax.device_get(whole[1]))
    assert (run / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()


def test_a_budget_of_tokens_ends_a_run_and_all_that_is_carried_is_restored(whole, warm, tmp_path):
    first = rows_of(whole[0])[1]["token/total"]
    session = setup(
        small_config(
            *LEARNS, f"trainer.token_budget={int(2.2 * first)}", "actor.lr_schedule=linear",
            "actor.clip_fraction=0.1", "algorithm.scale_rewards=true", "actor.use_kl_loss=true",
            "algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=adaptive",
            "critic.norm_returns=true",
        )
    )  # fmt: skip
    one, other = (shutil.copytree(warm, tmp_path / name) for name in ("one", "other"))
    train(session, one)
    totals = [row["token/total"] for row in rows_of(one)[1:]]
    assert totals[0] == first and totals[-2] < 2.2 * first <= totals[-1] and len(totals) < 4
    with pytest.raises(Stopped) as stopped:
        train(session, other, at("rl", 0, lambda: signal.raise_signal(signal.SIGTERM)))
    assert stopped.value.signal == signal.SIGTERM
    assert int(state_of(session, other).iteration) == 1
    train(session, other)
    assert_same_run(session, one, other)
    train(session, other)  # its tokens are spent
    assert_same_run(session, one, other)
    carried = state_of(session, one).carried
    assert carried["tokens"] == totals[-1] and carried["clip"] != np.float32(0.2)
    assert carried["value_moments"].number > 0


def test_without_iterations_there_is_nothing_to_train(session, tmp_path):
    with pytest.raises(ValueError, match="total_training_steps=0"):
        train(shorter(session, 0), tmp_path)


# Damage


def test_a_run_of_which_every_step_is_damaged_does_not_begin_again_silently(
    whole, session, tmp_path
):
    run = shutil.copytree(whole[0], tmp_path / "run")
    (run / "checkpoints" / "4" / "checksums.json").write_text("{}")
    before = contents(run)
    for use in (train, load_params):  # nor does it evaluate the warm start in its place
        with pytest.raises(DamagedCheckpoint, match="no step of it can be read") as caught:
            use(session, run)
        assert str(run / "checkpoints") in str(caught.value)
    assert contents(run) == before


def test_parameters_are_of_the_newest_step_that_is_whole(whole, session, tmp_path, caplog):
    run = shutil.copytree(whole[0], tmp_path / "run")
    with_damage(run, 4)
    before = contents(run)
    assert_same_bits(jax.device_get(load_params(session, run)), jax.device_get(whole[1]))
    assert load_step(session, run)[1] == 4
    assert "step 5 is damaged" in caplog.text
    with pytest.raises(DamagedCheckpoint, match="checkpoints/5 is damaged"):
        load_params(session, run, 5)
    assert contents(run) == before


def test_a_resume_that_is_refused_changes_nothing(whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    with_damage(run, 4)
    before = contents(run)
    with pytest.raises(ValueError, match="holds another state"):
        train(setup(small_config(*LEARNS, "model.d_ff=64")), run)
    assert contents(run) == before


@pytest.mark.slow
@pytest.mark.full
def test_a_disk_that_refuses_ends_a_run_that_can_be_resumed(whole, session, from_warm, monkeypatch):
    often = session._replace(config=small_config(*LEARNS, "trainer.save_trajectories=1"))

    def refuse(file, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("steprl.train.loop.save_experience", refuse)
        with pytest.raises(WriteError) as caught:
            train(often, from_warm)
    file = from_warm / "trajectories" / "step_000001.jsonl"
    assert str(caught.value) == f"{file} cannot be written: No space left on device"
    train(session, from_warm)
    assert_same_run(session, from_warm, whole[0])


# What is written


def test_the_first_row_is_the_evaluation_before_training(whole):
    first, *others = rows_of(whole[0])
    assert first[STEP] == 0
    assert all(name.startswith("eval/") for name in first if name != STEP)
    assert [row[STEP] for row in others] == [1, 2, 3, 4]
    assert ["eval/success_rate" in row for row in others] == [False, False, False, True]


def test_a_run_may_go_without_that_evaluation(session, from_warm):
    config = small_config(*LEARNS, "trainer.val_before_train=false", "trainer.test_freq=1",
                          "trainer.total_training_steps=2", "eval.greedy=false")  # fmt: skip
    train(session._replace(config=config), from_warm)
    rows = rows_of(from_warm)
    assert [row[STEP] for row in rows] == [1, 2]
    assert all("eval/success_rate" in row for row in rows)
    assert not any(name.endswith("_greedy") for row in rows for name in row)


@pytest.mark.parametrize(
    "name",
    [
        "actor/pg_loss", "actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl",
        "actor/entropy", "actor/grad_norm", "critic/grad_norm", "critic/vf_loss", "critic/vf_clipfrac",
        "critic/vf_explained_var", "critic/values/mean", "critic/returns/mean",
        "critic/returns/var", "critic/returns/equal",
        "critic/advantages/mean", "critic/advantages/max", "critic/advantages/min",
        "critic/rewards/mean", "critic/rewards/max", "critic/rewards/min", "num_turns/mean",
        "num_turns/max", "num_turns/min", "response_length/mean", "timing_s/gen", "timing_s/step",
    ],
)  # fmt: skip
def test_rows_have_the_metrics_by_the_names_of_verl(whole, name):
    rows = read_metrics(whole[0] / "metrics.jsonl")
    assert all(np.isfinite(row[name]) for row in rows[1:])


def test_training_agrees_with_decoding_in_every_iteration(whole):
    for row in rows_of(whole[0])[1:]:
        assert row["agree/logp_absmax"] < 1e-4 and abs(row["agree/ratio_mean"] - 1) < 1e-5


def test_the_watcher_hears_of_every_tenth_step_and_every_iteration(session, from_warm):
    heard = []
    train(shorter(session, 2), from_warm, heard.append)
    assert [(e.phase, e.step, e.steps) for e in heard] == [("rl", 0, 2), ("rl", 1, 2), ("rl", 2, 2)]


# Files of trajectories


def test_the_trajectories_of_a_game_are_written_with_the_credit_that_was_trained_on(whole, session):
    """StepPO whitens target minus value over the steps of the batch; all of them are in the file."""
    files = sorted((whole[0] / "trajectories").iterdir())
    assert [file.name for file in files] == [f"step_{i:06d}.jsonl" for i in (1, 2, 3, 4)]
    for file, metrics in zip(files, rows_of(whole[0])[1:], strict=True):
        steps = [row for rows in read_rows(file) for row in rows]
        assert len(steps) == metrics["step/count"]
        raw = np.array([row["target"] - row["value"] for row in steps])
        advantage = np.array([row["advantage"] for row in steps])
        np.testing.assert_allclose(
            advantage, (raw - raw.mean()) / (raw.std(ddof=1) + 1e-8), atol=2e-3
        )
        of_tokens = [row["advantage"] for row in steps for _ in row["response_ids"]]
        assert np.max(of_tokens) == pytest.approx(metrics["critic/advantages/max"], abs=1e-5)
        assert np.mean(of_tokens) == pytest.approx(metrics["critic/advantages/mean"], abs=1e-5)
        for row in steps:
            assert row["learnt"] and "response_advantages" not in row
            np.testing.assert_allclose(
                row["response_train_logprobs"], row["response_logprobs"], atol=1e-4
            )
            words = "".join(token for token in row["response_tokens"] if token != "<end>")
            assert words.replace(" ", "") == row["action"].replace(" ", "")


# Compilations

PROGRAMS = {  # the large ones, and how often each is compiled in a run
    "jit(init)": 1,
    "jit(fresh)": 1,
    "jit(compiled_demonstrations)": 1,
    "jit(compiled)": 1,  # the rollout: training, evaluation, sampled, greedy
    "jit(update)": 2,  # of the warm start and of the training
}
AT_MOST = 100  # all compilations of a run, the many tiny ones of a fresh process included


def test_each_program_compiles_once_a_run(whole):
    compiled = whole[2]
    counts = {name: compiled.count(name) for name in PROGRAMS}
    # Policies of one shape are the same functions: another test may have compiled these already.
    counts["jit(init)"] = max(counts["jit(init)"], 1)
    assert counts == PROGRAMS
    assert len(compiled) <= AT_MOST


@pytest.mark.slow
def test_more_iterations_compile_nothing_more(whole, session, tmp_path, warm):
    counts = {}
    for steps in (2, 4):
        fresh = setup(shorter(session, steps).config)  # nothing compiled is shared
        run = shutil.copytree(warm, tmp_path / str(steps))
        _, compiled = train(fresh, run)
        counts[steps] = {name: compiled.count(name) for name in PROGRAMS}
        rows = read_metrics(run / "metrics.jsonl")
        assert rows[2]["compile/count"] == rows[1]["compile/count"]
    assert counts[2] == counts[4]


# Not finite


def spoiled(session, name, iteration=3):
    """The session, in one iteration of which an array of the batch is NaN."""

    def gather(plan, sampling):
        rollouts = session.player.gather(plan, sampling)

        def spoiled_rollouts(params, key, task_N, sample_N, before):
            experience = rollouts(params, key, task_N, sample_N, before)
            if task_N[0] == (iteration - 1) * session.config.rollout.batch_size:
                nothing = getattr(experience.batch, name) * jnp.nan
                batch = dataclasses.replace(experience.batch, **{name: nothing})
                experience = experience._replace(batch=batch)
            return experience

        return spoiled_rollouts

    return session._replace(player=session.player._replace(gather=gather))


def test_what_is_not_finite_stops_the_run_and_the_last_good_state_is_saved(
    whole, session, from_warm, tmp_path
):
    """The log-probs of iteration 3 are NaN: what is saved is what iteration 2 left."""
    with pytest.raises(FloatingPointError, match="iteration 3: loss or gradient is not finite"):
        train(spoiled(session, "logprob_NT"), from_warm)
    assert all_steps(from_warm / "checkpoints") == [3]
    saved = state_of(session, from_warm)
    good = tmp_path / "good"
    shutil.copytree(from_warm / "sft", good / "sft")
    train(shorter(session, 2), good)
    assert_same_bits(saved.params, state_of(session, good).params)
    assert_same_bits(saved.opt_state, state_of(session, good).opt_state)
    assert_same_bits(jax.device_get(load_params(session, from_warm)), saved.params)
    last = rows_of(from_warm)[-1]
    assert last[STEP] == 3 and last["train/nonfinite"] == 2  # one mini-batch, two epochs
    assert rows_of(from_warm)[:3] == rows_of(whole[0])[:3]


@pytest.mark.full
def test_an_iteration_of_nothing_but_faults_stops_the_run_which_goes_on_when_mended(
    whole, session, from_warm
):
    """All rewards of iteration 3 are NaN, as a broken environment may give them."""
    with pytest.raises(EnvironmentFailed) as raised:
        train(spoiled(session, "reward_NS"), from_warm)
    said = str(raised.value)
    assert said.startswith("iteration 3: the environment failed in all of ")
    assert "step 0: the reward is nan" in said and "--resume auto" in said
    assert all_steps(from_warm / "checkpoints") == [2] and rows_of(from_warm)[-1][STEP] == 2
    train(session, from_warm)
    assert_same_bits(state_of(session, from_warm).params, state_of(session, whole[0]).params)
    assert rows_of(from_warm) == rows_of(whole[0])


def test_a_warm_start_that_is_not_finite_stops_too(session, tmp_path):
    config = small_config(*LEARNS, "sft.lr=1e30")
    with pytest.raises(FloatingPointError, match="warm start: loss is not finite at step"):
        train(session._replace(config=config), tmp_path)
    params = jax.device_get(load_params(session, tmp_path))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


# Parameters of another run


def test_parameters_are_those_of_the_training_or_else_of_the_warm_start(whole, session, warm):
    run, params, _ = whole
    assert_same_bits(jax.device_get(load_params(session, run)), jax.device_get(params))
    start = jax.device_get(load_params(session, warm))
    assert np.any(jax.tree.leaves(start)[0] != jax.tree.leaves(jax.device_get(params))[0])
    config = small_config(*LEARNS, f"trainer.init_from={warm}")
    assert_same_bits(jax.device_get(initial_params(session._replace(config=config))), start)


def test_parameters_of_another_model_say_which_shapes_differ(whole):
    wider = setup(small_config(*LEARNS, "model.d_ff=64"))
    with pytest.raises(ValueError) as caught:
        load_params(wider, whole[0])
    message = str(caught.value)
    assert "mlp/gate/kernel: stored float32[16, 32], expected float32[16, 64]" in message
    assert "attention" not in message  # those fit


def test_a_directory_without_a_checkpoint_is_named(session, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_params(session, tmp_path)


# Settings that do not fit the devices


@pytest.mark.parametrize(
    "overrides, said",
    [
        (("rollout.batch_size=12", "actor.ppo_mini_batch_size=12"), "rollout.n=12"),
        (("rollout.batch_size=16", "actor.ppo_mini_batch_size=4"), "ppo_mini_batch_size=4"),
        (("sft.batch_size=9",), "sft.batch_size=9"),
    ],
)
def test_rows_that_the_devices_do_not_divide_are_refused(overrides, said):
    with pytest.raises(ValueError, match="must be a multiple of the 8 devices") as caught:
        setup(small_config(*overrides))
    assert said in str(caught.value)


# Learning


@pytest.mark.slow
def test_a_short_warm_start_learns(session, tmp_path):
    config = small_config("sft.steps=80", "sft.lr=2e-2", "trainer.total_training_steps=1")
    train(session._replace(config=config), tmp_path)
    rows = rows_of(tmp_path, "sft.jsonl")
    assert rows[0]["sft/loss"] > 2.5 and rows[-1]["sft/loss"] < 1.5
    evaluated = rows_of(tmp_path)[0]
    assert evaluated["eval/parse_error_frac"] < 0.5  # every action of an untrained one is
