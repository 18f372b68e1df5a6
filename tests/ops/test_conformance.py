"""The replay of the reference vectors: that ours pass it, and that it can fail."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from steprl import ops

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "conformance.py"
VECTORS = ROOT.parent / "shared" / "vectors"
BUILT_HERE = (
    "step_gae", "token_gae", "step_returns", "critic_mask", "reward_scaling", "ppo", "gspo",
    "agg_loss", "value_loss", "kl", "adaptive_kl", "reward_kl", "masked_whiten", "entropy",
    "agentr1_step_gae", "agentr1_token_gae", "agentr1_grpo", "agentr1_ppo",
    "grpo", "rloo", "rfpp_baseline", "rfpp", "gigpo",
    "branpo_grpo", "branpo_advantage", "branpo_pipeline", "branpo_rules", "branpo_pairing",
    "appo_request", "appo_brancher", "appo_future_values", "appo_build_rollout",
    "appo_reward_scale", "appo_M", "appo_advantage", "appo_future_kl",
)  # fmt: skip
# Another benchmark of routers, and the social dilemmas.
NOT_BUILT = (
    # Routing and social dilemmas.
    "r2", "gathering", "commons", "cleanup", "cleanup_spawn_prob", "social_metrics", "map",
    "random_policy_stats",
    # Methods that the package does not have.
    "a2tgpo", "a2tgpo_loss", "areal_gae", "areal_lambda", "atpo_expand", "atpo_tree",
    "atpo_turn_loss", "cispo", "dapo_filter", "dppo", "g2po", "gppo", "gppo_half", "graphgpo",
    "gspo_soft_clip", "gspo_turn_soft_clip", "hgpo", "hierarchical_grpo", "igpo", "igpo_info_gain",
    "igpo_v1", "length_shaped_grpo", "maxrl", "pica_grpo", "pica_reward", "pica_rm_loss",
    "prime_default_loss", "ragen_bilevel_gae", "role_ema_baseline", "sapo", "sapo_areal",
    "token_baseline", "treegrpo", "treegrpo_turn_loss", "vagen_noconcat_gae", "vineppo",
    "zero_variance",
)  # fmt: skip
QUICK = (
    "step_gae",
    "token_gae",
    "ppo",
    "gspo",
    "grpo",
    "gigpo",
    "branpo_advantage",
    "appo_advantage",
)
FAMILIES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in BUILT_HERE
]

needs_vectors = pytest.mark.skipif(
    not VECTORS.is_dir(), reason=f"reference vectors are not at {VECTORS.relative_to(ROOT.parent)}"
)


@pytest.fixture(scope="module")
def conformance():
    sys.path.insert(0, str(SCRIPT.parent))  # as running the script does
    spec = importlib.util.spec_from_file_location("conformance", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kl_case(number, **changes):
    """A KL case with the answers of the definition."""
    logprob, ref = np.array([[-1.0, -2.0]], np.float32), np.array([[-1.5, -2.5]], np.float32)
    difference = logprob - ref
    case = {
        "logprob": logprob, "ref_logprob": ref, "kind": "k2", "out_kl": difference**2 / 2,
        "out_grad_sum": difference, "check": "exact", "note": "", "rtol": 1e-6, "atol": 1e-6,
    }  # fmt: skip
    return {f"kl_case{number}_{name}": x for name, x in (case | changes).items()}


def write(directory, **arrays):
    np.savez(directory / "vectors.npz", families=["kl"], n_cases=[1], **arrays)


def last_line(capsys):
    return capsys.readouterr().out.strip().splitlines()[-1]


def test_right_vectors_pass(conformance, tmp_path, capsys):
    write(tmp_path, **kl_case(0), **kl_case(1))
    assert conformance.main([str(tmp_path)]) == 0
    assert last_line(capsys) == "2 passed, 0 failed, 0 skipped"


@pytest.mark.parametrize(
    "corruption",
    [
        {"out_kl": np.array([[0.125, 0.126]])},
        {"out_grad_sum": np.array([[0.5, -0.5]])},
        {"out_kl": np.array([0.125, 0.125])},  # shape
        {"out_kl": np.array([[np.nan, 0.125]])},  # no deviation was declared
        {"out_surprise": np.zeros(2)},  # a result that is not replayed
        {"kind": "k9"},  # a call that breaks
        {"out_error": "ValueError"},  # a call that should have broken
    ],
    ids=lambda corruption: "-".join(corruption),
)
def test_a_corrupted_vector_fails_and_hides_no_other(conformance, tmp_path, capsys, corruption):
    write(tmp_path, **kl_case(0, **corruption), **kl_case(1))
    assert conformance.main([str(tmp_path)]) == 1
    assert last_line(capsys) == "1 passed, 1 failed, 0 skipped"


def test_the_command_line_says_so_in_its_exit_status(tmp_path):
    write(tmp_path, **kl_case(0, out_kl=np.zeros((1, 2))))
    run = subprocess.run(
        [sys.executable, SCRIPT, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.stdout.strip().splitlines()[-1] == "0 passed, 1 failed, 0 skipped"
    assert run.returncode == 1


def test_a_family_that_is_not_built_is_skipped(conformance, tmp_path, capsys):
    write(tmp_path, **kl_case(0), future_case0_check="exact", future_case1_check="exact")
    assert conformance.main([str(tmp_path)]) == 0
    assert last_line(capsys) == "1 passed, 0 failed, 2 skipped"


def test_a_folder_without_vectors_is_not_a_success(conformance, tmp_path):
    assert conformance.main([str(tmp_path)]) == 2


def test_refused_kinds_and_straight_through_kinds(conformance, tmp_path, capsys):
    no_results = {"out_error": "NotImplementedError", "check": "raises"}
    cases = {}
    for number, kind in enumerate(("k2+", "full")):
        case = kl_case(number, kind=kind, **no_results)
        cases |= {n: x for n, x in case.items() if "out_kl" not in n and "grad_sum" not in n}
    write(tmp_path, **cases)
    assert conformance.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "deviation, kl, 1 case(s): KL kinds ending in +" in out


def test_deviations_are_decided_from_the_data_and_still_checked(conformance):
    case = {
        "loss_mat": np.array([[1.0, np.nan]], np.float32), "mask": np.array([[1, 0]]),
        "loss_agg_mode": "seq-mean-token-sum", "out_verl": np.nan, "out_agentr1": np.nan,
        "out_appo": np.nan, "check": "nan", "rtol": 1e-6, "atol": 1e-6,
    }  # fmt: skip
    assert conformance.check_case("agg_loss", case) == ([], {"poison"})
    wrong, _ = conformance.check_case("agg_loss", case | {"mask": np.array([[1, 1]])})
    assert wrong  # the same NaN, but read: nothing excuses it


_loaded = []


def cases_of(conformance, family):
    if not _loaded:
        _loaded.extend(conformance.load_cases(VECTORS))
    return [(number, case) for name, number, case in _loaded if name == family]


@needs_vectors
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_and_the_last_case_of_a_family_are_met(conformance, family):
    """All cases are replayed by `make conformance`; here too where one goes on from the one before."""
    cases = cases_of(conformance, family)
    assert cases, f"no case of {family} in {VECTORS}"
    for number, case in cases if family == "reward_scaling" else (cases[0], cases[-1]):
        wrong, _ = conformance.check_case(family, case)
        assert not wrong, f"case {number}: {wrong}"


@needs_vectors
def test_only_what_is_not_of_this_package_is_skipped(conformance):
    assert set(conformance.FAMILIES) == set(BUILT_HERE)
    recorded = {name for name, _, _ in conformance.load_cases(VECTORS)}
    assert recorded - set(BUILT_HERE) <= set(NOT_BUILT)


def test_the_replay_notices_a_wrong_function(conformance, tmp_path, monkeypatch):
    right = ops.kl_penalty
    monkeypatch.setattr(ops, "kl_penalty", lambda *a: right(*a) + jnp.float32(1e-3))
    write(tmp_path, **kl_case(0))
    assert conformance.main([str(tmp_path)]) == 1
