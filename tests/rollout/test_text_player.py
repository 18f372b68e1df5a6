"""Players of text environments: rows of demonstrations."""

import jax
import numpy as np
import pytest

from steprl.config import MeshConfig, RolloutConfig
from steprl.models import DecoderConfig, make_policy
from steprl.rollout import scripted, text_player
from steprl.rollout.contexts import chat_context
from steprl.sharding import make_mesh
from tests.models.chat_models import CHATML, chat_tokenizer
from tests.rollout.test_contexts import Diary

TOKENIZER = chat_tokenizer(CHATML)


def demonstrations(form, questions, rows, step=0, length=128, broken=()):
    """What tasks the rows of a batch begin with, and the batch."""
    context = chat_context(TOKENIZER, "Be the.", rebuild=form == "rebuild")
    config = DecoderConfig(
        vocab_size=len(TOKENIZER), d_model=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8,
        d_ff=8, value_head="none",
    )  # fmt: skip
    asked = []

    def demonstrate(task, seed):
        asked.append(task)
        task = task if questions is None else task % questions
        if task in broken:
            raise SystemExit(f"no expert for {task}")
        return scripted(Diary(form), context, task, lambda env, state: "the", 4, length)

    player = text_player(
        {"train": Diary(form)}, context, TOKENIZER, make_policy(config), make_mesh(MeshConfig()),
        RolloutConfig(response_length=8, context_length=length), 4, demonstrate,
        {} if questions is None else {"train": questions},
    )  # fmt: skip
    tasks = np.arange(step * rows, (step + 1) * rows)
    return asked, player.demonstrate(jax.random.key(step), tasks)


def test_every_one_of_finitely_many_tasks_is_shown():
    firsts = set()
    for step in range(2):
        asked, batch = demonstrations("rebuild", 16, 8, step)
        firsts |= {task % 16 for task in asked}
        assert (np.asarray(batch.step_ids_NT) >= 0).any(axis=1).all()
    assert firsts == set(range(16))


def test_rows_of_endless_tasks_share_none():
    asked, _ = demonstrations("extend", None, 8)
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("form", ["extend", "rebuild"])
def test_rows_hold_whole_contexts_and_only_actions_count(form):
    _, batch = demonstrations(form, 16, 8, length=256)
    action = [
        *TOKENIZER.encode("the", add_special_tokens=False),
        chat_context(TOKENIZER).stop_ids[0],
    ]
    tokens, ids = np.asarray(batch.tokens_NT), np.asarray(batch.step_ids_NT)
    assert np.asarray(batch.segment_ids_NT).max() > 1
    for row in range(8):
        for number in range(ids[row].max() + 1):
            assert tokens[row][ids[row] == number].tolist() == action
    assert (ids >= 0).sum(axis=1).max() <= batch.action_width


def test_demonstrations_that_fit_nowhere_are_an_error():
    with pytest.raises(ValueError, match="rollout.context_length=40.* do not fit"):
        demonstrations("rebuild", 16, 8, length=40)


def test_a_demonstration_that_fails_is_left_out_and_the_first_is_told(caplog):
    """Rows of 16 questions, of which three have no expert."""
    _, batch = demonstrations("rebuild", 16, 8, broken=(0, 5, 6))
    assert (np.asarray(batch.step_ids_NT) >= 0).any(axis=1).all()
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "Demonstrations that fail are left out. The first: task 0: SystemExit: no expert for 0"
    ]


def test_where_no_demonstration_is_left_the_error_says_why():
    with pytest.raises(
        ValueError, match="none of tasks 0 to 7 .* task 7: SystemExit: no expert for 7"
    ):
        demonstrations("rebuild", 16, 8, broken=range(16))
