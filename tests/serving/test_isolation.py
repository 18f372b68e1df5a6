"""Requests leave nothing behind, templates reach nothing outside, and seeds are all of them read."""

import gc
import os
import threading

import jax
import pytest

from steprl.serving import make_app
from steprl.serving.generation import key_of
from tests.serving.malformed import CHAT, COMPLETION, chat, completion, post, post_all, served_with
from tests.serving.tiny import chatml_tokenizer

pytest.importorskip("fastapi")


def open_files():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def growth(requests):
    """Objects, files and threads that are more after so many requests than after a few."""
    served = served_with()
    app = make_app(served)
    kinds = [(CHAT, chat()), (CHAT, chat(n=0)), (COMPLETION, completion(stream=True)),
             (COMPLETION, b"{"), (CHAT, chat(stream=True)), (COMPLETION, completion(model="x"))]  # fmt: skip

    def state():
        served.engine.prompts.clear()
        gc.collect()
        return len(gc.get_objects()), open_files(), threading.active_count()

    post_all(app, kinds * 5)
    before = state()
    post_all(app, [kinds[number % len(kinds)] for number in range(requests)])
    return [after - first for after, first in zip(state(), before, strict=True)]


@pytest.mark.parametrize("requests", [100, pytest.param(1000, marks=pytest.mark.full)])
def test_requests_leave_nothing_behind(requests):
    objects, files, threads = growth(requests)
    assert objects < requests // 2 and files <= 0 and threads <= 1


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch PATH') }}",
        "{{ lipsum.__globals__['os'].popen('touch PATH').read() }}",
        "{{ self.__init__.__globals__.__builtins__.open('PATH', 'w') }}",
        "{{ namespace.__init__.__globals__['__builtins__']['open']('PATH', 'w') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('touch PATH') }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
        "{{ '%s' | format(1) }}{{ '{0.__class__}'.format(messages) }}",
    ],
)
def test_templates_reach_nothing_outside(template, tmp_path):
    """A chat template is a program from a model's directory; it only writes text."""
    path = tmp_path / "reached"
    good = chatml_tokenizer().chat_template
    evil = "{% if messages | length == 2 %}" + template.replace("PATH", str(path)) + "{% endif %}"
    served = served_with(evil + good)
    said = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    answer = post(make_app(served), CHAT, chat(messages=said))
    assert not path.exists()
    if answer.status_code != 400:
        text = chatml_tokenizer().decode(served.engine.prompts[-1])
        assert not {"<class", "root:"} & {word for word in ("<class", "root:") if word in text}


def test_seeds_of_64_bits_differ():
    """`jax.random.key` reads 32 bits of them."""
    seeds = [0, 1, 7, -1, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, -(2**63)]
    keys = {tuple(jax.random.key_data(key_of(seed)).tolist()) for seed in seeds}
    assert len(keys) == len(seeds)
