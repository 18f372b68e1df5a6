"""The form in which a template asks for calls is read, or refused at the door."""

import pytest

from steprl.envs.suite import Suite
from steprl.models.tool_forms import HERMES, JSON, NONE, tool_form
from steprl.rollout.contexts import suite_context
from steprl.serving.conversation import message_format
from steprl.tools import parse_tool_calls
from tests.models.chat_models import ADD, CHATML, LLAMA, QWEN, THINKING, chat_tokenizer

SHOWN = "{% if tools %}{{ tools | tojson }}{% endif %}"


def template(call, end="<|im_end|>"):
    """Shows tools, and writes calls as an expression of `call` has it."""
    return (
        SHOWN + "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
        "{{ message.content or '' }}"
        "{% for one in message.tool_calls or [] %}{% set call = one.function %}" + call + "{% endfor %}"
        "{{ '" + end + "' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )  # fmt: skip


OTHERS = {
    "Mistral": "[TOOL_CALLS][{{ {'name': call.name, 'arguments': call.arguments} | tojson }}]",
    "Qwen3-Coder": "<tool_call>\n<function={{ call.name }}>\n{% for k, v in call.arguments.items() %}"
    "<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>",
    "DeepSeek": "<|tool_call_begin|>function<|tool_sep|>{{ call.name }}\n```json\n"
    "{{ call.arguments | tojson }}\n```<|tool_call_end|>",
    "Python": "[{{ call.name }}(word={{ call.arguments.word | tojson }})]",
    "GLM": "<tool_call>{{ call.name }}\n<arg_key>word</arg_key></tool_call>",
    "silent": "",
    "other keys": "{{ {'tool_name': call.name, 'args': call.arguments} | tojson }}",
}
TEXT_ARGUMENTS = (
    '<tool_call>\n{"name": "{{ call.name }}", "arguments": {{ call.arguments + "" }}}\n</tool_call>'
)
TYPED = "{{ {'type': 'function', 'name': call.name, 'parameters': call.arguments} | tojson }}"


@pytest.mark.parametrize(
    ("chat_template", "form"),
    [
        (CHATML, NONE),
        (QWEN, HERMES),
        (THINKING, HERMES),
        (LLAMA, JSON),
        (template(TEXT_ARGUMENTS), HERMES),
        (template(TYPED), JSON),
    ],
)  # fmt: skip
def test_forms_that_are_read(chat_template, form):
    assert tool_form(chat_tokenizer(chat_template)) == form


@pytest.mark.parametrize("family", OTHERS)
def test_other_forms_are_refused_at_setup(family):
    tokenizer = chat_tokenizer(template(OTHERS[family]))
    tokenizer.name_or_path = f"org/{family}"
    suite = Suite(splits={"train": Room()}, tools=[ADD])
    says = f"the chat template of org/{family} writes .*Hermes.*Llama 3"
    with pytest.raises(ValueError, match=says):
        suite_context(suite, tokenizer, pretrained=True)
    served = message_format(tokenizer)  # chats without tools all the same
    assert served.encode([{"role": "user", "content": "a"}], [])
    with pytest.raises(ValueError, match=says):
        served.encode([{"role": "user", "content": "a"}], [ADD])


class Room:
    def reset(self, task, key=None):
        return 0, "Hello."

    def step(self, state, action):
        return 0, "", 0.0, True, False, {"success": False, "valid": True}


def test_where_the_template_shows_no_tools_the_system_message_says_how_to_call():
    tokenizer = chat_tokenizer(CHATML)
    suite = Suite(splits={"train": Room()}, tools=[ADD], system="You add.")
    text = tokenizer.decode(suite_context(suite, tokenizer, pretrained=True).begin("1 + 2?"))
    assert text.startswith("<|im_start|>system\nYou add.\n\nYou may call tools.")
    assert '"description": "Add."' in text
    shown = text.partition("tool_call tags:\n")[2].partition("<|im_end|>")[0]
    [call], errors = parse_tool_calls(shown)  # the form that is shown is one that is read
    assert call.name == "name of the tool" and errors == []
