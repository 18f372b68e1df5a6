"""Settings: what is misspelt, mistyped, out of range or contradictory is said, and nothing else."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.config import LOSS_AGG_MODES, Config, ConfigError, load_config, save_config
from steprl.ops.aggregation import REDUCTIONS

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def error_of(*overrides, path=None):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def leaves(config, prefix=""):
    """Dotted name and value of every setting."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def of(config, dotted):
    return dict(leaves(config))[dotted]


def test_without_file_and_overrides_the_defaults_hold():
    assert load_config() == Config()


# Unknown keys


@pytest.mark.parametrize(
    "override, near",
    [
        ("actr=1", "actor"),
        ("algorithm.gama=1", "algorithm.gamma"),
        ("env.multihop.num_entitys=8", "env.multihop.num_entities"),
        ("trainer.total_trainig_steps=8", "trainer.total_training_steps"),
        ("gamma=0.9", "algorithm.gamma"),  # the right name in the wrong place
    ],
)
def test_an_unknown_key_at_any_depth_names_the_nearest(override, near):
    message = error_of(override)
    assert f"unknown setting {override.split('=')[0]}" in message
    assert near in message.split(":", 1)[1]


def test_an_unknown_key_like_nothing_else_lists_what_is_known():
    assert "known here: gamma" not in error_of("algorithm.gama=1")
    assert "known here: name, options, gamma, lam" in error_of("algorithm.zzz=1")


def test_an_unknown_key_in_a_file_is_an_error_too(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("algorithm:\n  gama: 0.9\n")
    assert "did you mean algorithm.gamma?" in error_of(path=file)


# Wrong types and ranges


@pytest.mark.parametrize(
    "override, said",
    [
        ("actor.lr=fast", ("actor.lr", "fast", "Float")),
        ("actor.ppo_epochs=1.5", ("actor.ppo_epochs", "1.5", "Integer")),
        ("rollout.batch_size=true", ("rollout.batch_size", "True", "Integer")),
        ("model.remat=maybe", ("model.remat", "maybe", "bool")),
        ("actor.lr=null", ("actor.lr", "None", "float")),
        ("actor.lr.x=3", ("actor.lr", "{'x': 3}", "Float")),
        ("actor=3", ("actor", "3", "expected settings", "ppo_epochs")),
        ("env.multihop=null", ("env.multihop", "None", "num_entities")),
    ],
)
def test_a_wrong_type_names_key_value_and_what_is_allowed(override, said):
    message = error_of(override)
    for word in said:
        assert word in message


@pytest.mark.parametrize(
    "override, said",
    [
        ("algorithm.gamma=1.01", "algorithm.gamma=1.01: must be at most 1.0"),
        ("algorithm.lam=-0.1", "algorithm.lam=-0.1: must be at least 0.0"),
        ("actor.lr=-1", "actor.lr=-1.0: must be at least 0.0"),
        ("env.multihop.num_entities=97", "env.multihop.num_entities=97: must be at most 96"),
        ("mesh.data=-2", "mesh.data=-2: must be at least -1"),
        ("model.value_head=Shared", "model.value_head='Shared': allowed are shared, separate"),
        ("env.name=chess", "env.name='chess': allowed are multihop, errand"),
        ("actor.loss_agg_mode=mean", "actor.loss_agg_mode='mean': allowed are token-mean"),
        ("trainer.logger=[jsonl,wand]", "trainer.logger='wand': allowed are jsonl"),
        ("actor.lr=inf", "actor.lr=inf: must be finite"),
    ],
)
def test_out_of_range_names_key_value_and_what_is_allowed(override, said):
    assert said in error_of(override)


@pytest.mark.parametrize("override", ["algorithm.gamma=0", "algorithm.gamma=1", "mesh.data=-1"])
def test_both_ends_of_a_range_are_allowed(override):
    key, value = override.split("=")
    assert of(load_config(None, [override]), key) == float(value)


@pytest.mark.parametrize("key", [k for k, v in leaves(Config()) if isinstance(v, float)])
@pytest.mark.parametrize("value", ["nan", ".nan"])
def test_nan_is_refused_by_every_number(key, value):
    assert key in error_of(f"{key}={value}")


def test_a_setting_that_may_be_absent_takes_null_but_not_nan():
    assert load_config(None, ["critic.lr=0.1", "critic.lr=null"]).critic.lr is None
    assert "critic.lr" in error_of("critic.lr=nan")


def test_the_names_of_aggregations_are_those_of_the_ops():
    assert LOSS_AGG_MODES == REDUCTIONS


# Contradictions


@pytest.mark.parametrize(
    "overrides, said",
    [
        (
            ["rollout.batch_size=10", "rollout.n=2", "actor.ppo_mini_batch_size=8"],
            ("actor.ppo_mini_batch_size=8", "must divide", "rollout.batch_size * rollout.n = 20"),
        ),
        (
            ["actor.ppo_mini_batch_size=64", "actor.ppo_micro_batch_size=24"],
            ("actor.ppo_micro_batch_size=24", "must divide", "actor.ppo_mini_batch_size=64"),
        ),
        (["actor.clip_ratio_c=0.5"], ("actor.clip_ratio_c=0.5", "0 (off) or above 1")),
        (["actor.clip_ratio_c=1"], ("actor.clip_ratio_c=1.0", "0 (off) or above 1")),
        (["rollout.top_k=1"], ("rollout.top_k=1", "nothing would be learnt", "at least 2")),
        (["rollout.temperature=0"], ("rollout.temperature=0.0", "above 0")),
        (
            ["env.multihop.min_hops=5", "env.multihop.max_hops=4"],
            ("env.multihop.min_hops=5", "at most", "env.multihop.max_hops=4"),
        ),
    ],
)
def test_settings_at_odds_are_refused(overrides, said):
    message = error_of(*overrides)
    for word in said:
        assert word in message


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.batch_size=10", "rollout.n=2", "actor.ppo_mini_batch_size=5"],
        ["actor.ppo_micro_batch_size=16"],
        ["actor.clip_ratio_c=0"],
        ["actor.clip_ratio_c=1.1"],
        ["eval.top_p=0.9", "eval.top_k=1", "eval.temperature=0"],
        ["rollout.top_p=0.9", "rollout.top_k=2"],
        ["env.multihop.min_hops=3", "env.multihop.max_hops=3"],
    ],
)
def test_the_same_settings_in_harmony_are_taken(overrides):
    config = load_config(None, overrides)
    for override in overrides:
        key, value = override.split("=")
        assert of(config, key) == float(value)


# Files and overrides


@pytest.mark.parametrize("override", ["actor.lr", "=3", "--actor.lr=3", ""])
def test_an_override_is_key_and_value(override):
    message = error_of(override)
    assert repr(override) in message and "expected key=value" in message


@pytest.mark.parametrize(
    "override, value",
    [
        ("trainer.experiment_name=a=b", "a=b"),
        ("trainer.experiment_name=3", "3"),
        ("trainer.logger=[jsonl,wandb]", ["jsonl", "wandb"]),
        ("trainer.logger=tensorboard", ["tensorboard"]),  # one of a list
        ("env.household.task_types=pick_and_place", ["pick_and_place"]),
        ("trainer.seed=4294967295", 2**32 - 1),
        ("trainer.seed=0x10", 16),
        ("trainer.experiment_name=2020-01-01", "2020-01-01"),
        ("actor.lr=1e-3", 1e-3),
        ("model.remat=true", True),
        ("model.d_model=null", None),
    ],
)
def test_an_override_is_read_as_yaml(override, value):
    assert of(load_config(None, [override]), override.split("=")[0]) == value


def test_an_override_that_is_no_yaml_is_an_error_of_the_settings():
    assert "algorithm.name=[1" in error_of("algorithm.name=[1")


def test_overrides_win_over_the_file_and_the_last_one_over_the_others(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("actor: {lr: 1.0e-3, ppo_epochs: 5}\nalgorithm: {gamma: 0.5}\n")
    config = load_config(file, ["actor.lr=2e-3", "actor.lr=3e-3"])
    assert config.actor.lr == 3e-3
    assert (config.actor.ppo_epochs, config.algorithm.gamma) == (5, 0.5)
    assert config.critic == Config().critic


def test_a_file_that_is_missing_no_mapping_or_no_yaml_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    for text, said in (("- 1\n- 2\n", "mapping"), ("a: [1", "not YAML")):
        file = tmp_path / "odd.yaml"
        file.write_text(text)
        message = error_of(path=file)
        assert "odd.yaml" in message and said in message and "\n" not in message


def test_an_empty_file_is_the_defaults(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("")
    assert load_config(file) == Config()


def test_configurations_share_no_list():
    load_config().trainer.logger.append("wandb")
    assert load_config().trainer.logger == ["jsonl"]


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(0, 10),
    name=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1),
    remat=st.booleans(),
    critic_lr=st.none() | st.floats(0, 10),
    kinds=st.lists(st.sampled_from(["a", "b"]), max_size=3),
)
def test_saved_settings_load_to_the_same_settings(
    tmp_path_factory, lr, name, remat, critic_lr, kinds
):
    config = Config()
    config = dataclasses.replace(
        config,
        actor=dataclasses.replace(config.actor, lr=lr),
        critic=dataclasses.replace(config.critic, lr=critic_lr),
        model=dataclasses.replace(config.model, remat=remat),
        trainer=dataclasses.replace(config.trainer, experiment_name="x" + name),
        env=dataclasses.replace(
            config.env, household=dataclasses.replace(config.env.household, task_types=kinds)
        ),
    )
    file = tmp_path_factory.mktemp("saved") / "config.yaml"
    save_config(config, file)
    assert load_config(file) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_fine(path, tmp_path):
    config = load_config(path)
    assert config.trainer.experiment_name == path.stem
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    what, command = path.read_text().splitlines()[:2]
    assert what.startswith("# ") and command.startswith("#   ")


def test_there_are_shipped_configurations():
    assert "quickstart" in [path.stem for path in CONFIGS]


def test_settings_are_frozen_at_every_depth():
    config = load_config()
    for target, name in (
        (config, "actor"),
        (config.actor, "lr"),
        (config.env.multihop, "min_hops"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(target, name, None)


def test_a_short_name_stands_for_the_key():
    assert load_config(None, ["train.steps=7"]).trainer.total_training_steps == 7
    with pytest.raises(ConfigError, match="trainer.total_training_steps"):
        load_config(None, ["train.steps=many"])
