"""An environment, a policy and a method from a file outside the package, through the one door."""

import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from steprl.algorithms import ALGORITHMS, Credit
from steprl.branching import ByScore
from steprl.carried import Carry
from steprl.cli import main
from steprl.config import AlgorithmConfig, load_config
from steprl.laboratory import make_program
from steprl.models.modules import as_policy
from steprl.run_directory import open_run
from steprl.session import abstract_params, initial_params, load_params, setup
from steprl.session.method import check_contract
from steprl.train import train
from tests import own_agent
from tests.models.recurrent import LinenModel

NAMES = (
    "env.name=own_agent:environment",
    "model.name=own_agent:policy",
    "algorithm.name=own_agent:method",
)
SETTINGS = (
    "rollout.batch_size=32", "rollout.response_length=2", "rollout.context_length=32",
    "actor.ppo_mini_batch_size=16", "actor.lr=0.02", "actor.lr_schedule=constant",
    "sft.steps=12", "sft.batch_size=8", "sft.lr=0.01", "sft.warmup_steps=2", "eval.num_tasks=16",
    "trainer.total_training_steps=8", "trainer.test_freq=0", "trainer.save_freq=0",
    "trainer.experiment_name=own",
)  # fmt: skip


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder that holds the file, as that of a user."""
    shutil.copy(Path(own_agent.__file__), tmp_path / "own_agent.py")
    (tmp_path / "own.yaml").write_text("trainer:\n  seed: 3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parameters(session, run):
    return jax.device_get(load_params(session, run))


@pytest.mark.slow
def test_all_three_are_trained_evaluated_and_resumed_by_name(outside, capsys):
    words = ["own.yaml", *NAMES, *SETTINGS, "model.options.width=32", "algorithm.options.scale=2.0"]
    assert main(["train", *words]) == 0
    said = capsys.readouterr().out
    assert "own_agent:method" in said and "own_agent:environment" in said
    assert re.search(r"blue at last task \d+, after training", said)

    assert main(["eval", "runs/own"]) == 0
    success = json.loads((outside / "runs/own/eval.json").read_text())["eval/success_rate"]
    rows = [json.loads(line) for line in open("runs/own/metrics.jsonl")]
    assert success == rows[-1]["eval/success_rate"]
    assert (
        rows[0]["eval/success_rate"] < 0.3 and success > 0.6
    )  # on lights that training never ends with
    assert main(["rollout", "runs/own", "--tasks", "1"]) == 0

    # Stopped in the middle and resumed, it is the same run.
    half = [*words, "trainer.experiment_name=half"]
    assert main(["train", *half, "trainer.total_training_steps=4"]) == 0
    assert main(["train", *half, "--resume"]) == 0
    session = setup(load_config("own.yaml", words[1:]))
    assert session.model is None and session.vocab_size == 7
    jax.tree.map(
        np.testing.assert_array_equal,
        *(parameters(session, Path("runs") / n) for n in ("own", "half")),
    )

    # What is for the decoders of the project says so.
    assert main(["export", "runs/own", "exported"]) == 1
    assert "model.name=own_agent:policy" in capsys.readouterr().out


@pytest.mark.slow
def test_all_three_are_given_as_values(outside):
    config = load_config("own.yaml", [*SETTINGS, "sft.steps=0", "trainer.total_training_steps=1"])
    method = own_agent.method()
    session = setup(config, env=own_agent.environment(), policy=LinenModel(7), method=method)
    assert session.method is method
    assert session.config.env.name == "python:Suite"
    assert session.config.model.name == "python:LinenModel"
    run = open_run(session.config)
    params, _ = train(session, run)
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(session))
    # Another process has only the names.
    with pytest.raises(ValueError, match="'python:Suite' was given to `steprl.session.setup`"):
        setup(load_config(run / "config.resolved.yaml", ["model.name=null", "algorithm.name=grpo",
                                                         "rollout.n=2"]))  # fmt: skip
    with pytest.raises(ValueError, match=r"says env.name=multihop.*open_run\(session.config\)"):
        train(session, open_run(config, overwrite=True))


@pytest.mark.parametrize(
    ("given", "overrides", "error", "message"),
    [
        ({"method": "grpo"}, (), TypeError, "method is str: give a steprl.algorithms.Algorithm"),
        ({"policy": 3}, (), TypeError, "policy is int: give a steprl.types.Policy"),
        ({"env": 3}, (), ValueError, "env is int where an object with reset and step was expected"),
        (
            {"policy": LinenModel(9)},
            (),
            ValueError,
            r"policy.unembed is float32 of shape \(2, 5, 9\)",
        ),
        ({"policy": LinenModel(7)}, ("model.lora.rank=2",), ValueError, "this policy is your own"),
        (
            {"policy": as_policy(LinenModel(7))._replace(value=None)},
            ("algorithm.name=steppo",),
            ValueError,
            "steppo learns from a critic",
        ),
        ({"method": ALGORITHMS["grpo"]}, (), ValueError, "compares attempts at the same task"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_computed(given, overrides, error, message):
    config = load_config(None, [*SETTINGS, *overrides])
    with pytest.raises(error, match=message):
        setup(config, **{"env": own_agent.environment(), **given})


METHOD = own_agent.method()
COUNT = Carry("count", lambda trainable, config: 0, lambda value, seen, config: value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(ratio_level="word"), "method: ratio_level='word': allowed are"),
        (dict(reduction="mean"), "method: reduction='mean': allowed are token-mean"),
        (dict(needs="critic"), "method: needs='critic': give a tuple of str"),
        (dict(needs=("memory",)), "method needs 'memory'; needs are critic"),
        (dict(carries=COUNT), "method: carries=.*: give a tuple of Carry"),
        (dict(carries=(COUNT, COUNT)), "method: carries: the name 'count' is taken"),
        (dict(carries=(COUNT._replace(name="clip"),)), "method: carries: the name 'clip' is taken"),
        (dict(branching="byscore"), "method: branching='byscore': give steprl.branching.Contrast"),
        (dict(credit=None), "method: credit.* fails: TypeError: 'NoneType'"),
        (dict(credit=lambda batch, value: value), "method: credit.* takes 2 positional arguments"),
        (
            dict(credit=lambda batch, value, config: value),
            "method: credit gives .*: give steprl.alg",
        ),
        (
            dict(credit=lambda batch, value, config: Credit(batch.reward_NS, value, value > 0)),
            r"method: credit gives advantage_NT of shape \(4, 3\): one number a token is \(4, 12\)",
        ),
        (
            dict(branching=ByScore(lambda batch: batch, keep_token=True)),
            "method: branching.candidates.* fails: TypeError",
        ),
    ],
)
def test_a_method_that_breaks_its_contract_is_told_where(change, message):
    config = load_config(None, [*SETTINGS, "sft.steps=0"])
    given = dict(env=own_agent.environment(), policy=LinenModel(7))
    with pytest.raises(ValueError, match=message):
        setup(config, **given, method=METHOD._replace(**change))
    with pytest.raises(ValueError, match=message):
        make_program(config, method=METHOD._replace(**change))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_methods_of_the_table_keep_the_contract(name):
    check_contract(ALGORITHMS[name], name, AlgorithmConfig())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({".*": PartitionSpec()}, "rules is dict: give a list"),
        ([("kernel", "fsdp")], "is no .pattern, PartitionSpec"),
        ([("(", PartitionSpec())], "'\\(' is no regular expression"),
        ([("kernel", PartitionSpec("tensor"))], "names the axis 'tensor'; the mesh has data, fsdp"),
    ],
)
def test_rules_that_are_none_are_refused(rules, message):
    config = load_config(None, [*SETTINGS, "sft.steps=0"])
    given = dict(env=own_agent.environment(), policy=LinenModel(7), method=METHOD)
    with pytest.raises(ValueError, match=message):
        setup(config, **given, rules=rules)


def test_options_are_for_functions_that_are_named():
    config = load_config(None, [*SETTINGS, "algorithm.options.scale=2"])
    with pytest.raises(
        ValueError, match="algorithm.options are for a function named by algorithm.n"
    ):
        setup(config, env=own_agent.environment(), policy=LinenModel(7), method=METHOD)


def shown(*actions):
    return dataclasses.replace(own_agent.environment(), demonstrate=lambda task, seed: actions[0])


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ("red", "the demonstration of task 7 is the text 'red': give a list of actions"),
        (["red", "purple"], "'purple' has words that are not in the vocabulary"),
    ],
)
def test_a_demonstration_that_is_none_is_refused(actions, message):
    session = setup(load_config(None, SETTINGS), env=shown(actions), policy=LinenModel(7),
                    method=METHOD)  # fmt: skip
    with pytest.raises(ValueError, match=message):
        session.player.demonstrate(jax.random.key(0), np.arange(8))


class Shared(LinenModel):
    """Its cache has one array twice."""

    def init_cache(self, batch, length):
        zeros = super().init_cache(batch, length)
        return {"states": zeros, "copy": zeros}

    def __call__(self, tokens, positions, segments, cache=None):
        states = None if cache is None else cache["states"]
        hidden, states = super().__call__(tokens, positions, segments, states)
        return hidden, cache if cache is None else {"states": states, "copy": cache["copy"]}


def test_a_cache_may_have_one_array_twice():
    session = setup(load_config(None, [*SETTINGS, "sft.steps=0"]), env=own_agent.environment(),
                    policy=Shared(7), method=METHOD)  # fmt: skip
    params = initial_params(session)
    batch = session.player.play(params, jax.random.key(0), np.arange(8), np.zeros(8, int))
    assert batch.mask_NS.any(axis=1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("algorithm.name=own_agent:nothing",), "own_agent has no 'nothing'"),
        (("algorithm.name=own_agent:environment",), "returned Suite; expected a steprl.algorithms"),
        (("algorithm.name=own_agent:method", "algorithm.options.scal=1"), "no argument 'scal'"),
        (
            ("algorithm.name=grpo", "algorithm.options.scale=1"),
            "algorithm.options are for a method",
        ),
        (
            ("model.name=own_agent:policy", "model.options.wide=1"),
            "model.options.wide: own_agent:pol",
        ),
        (("model.name=own_agent:environment",), "has no argument 'vocab_size'|unexpected keyword"),
    ],
)
def test_a_name_that_leads_nowhere_is_said(outside, settings, message):
    base = ("env.name=own_agent:environment", "sft.steps=0")
    with pytest.raises(ValueError, match=message):
        setup(load_config(None, [*SETTINGS, *base, *settings]))


def test_an_environment_in_natural_language_needs_a_tokenizer_for_a_policy_of_ones_own():
    config = load_config(None, [*SETTINGS, "env.name=wiki_search", "sft.steps=0"])
    with pytest.raises(ValueError, match="needs the tokenizer of a pretrained model"):
        setup(config, policy=LinenModel(7))


def test_parameters_without_a_rule_are_noticed_once_when_they_could_be_split():
    config = load_config(None, [*SETTINGS, "mesh.fsdp=2", "sft.steps=0"])
    given = dict(env=own_agent.environment(), policy=LinenModel(7), method=own_agent.method())
    with pytest.warns(UserWarning, match="no sharding rule covers 4 parameters"):
        setup(config, **given)
    rules = [(".*", PartitionSpec())]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = setup(config, **given, rules=rules)
    assert all(
        leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(abstract_params(session))
    )
