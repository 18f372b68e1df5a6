"""Small tokenizers that write conversations as the families of chat models do."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<|end|>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|header|>", "<|/header|>", "<|eot|>",
    "<s>", "</s>",
)  # fmt: skip
ADDED = ("<tool_call>", "</tool_call>", "<think>", "</think>")  # not special: they mean something
MERGES = (("Ċ", "Ċ"), ("Ċ", "Ġ"), ("Ġ", "Ġ"), ("t", "h"), ("th", "e"), ("Ġ", "the"))

# Line breaks stay together, as in Llama 3 and Qwen.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# As SmolLM2: a system message of its own, and no tools.
CHATML = """
{%- for message in messages %}
{%- if loop.first and message.role != 'system' %}
{{- '<|im_start|>system\nI am small.<|im_end|>\n' }}
{%- endif %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# As Llama 3: a begin token, a date, trimmed texts, tools in the first message of the user.
LLAMA = """
{{- bos_token + '<|header|>system<|/header|>\n\nToday: ' + date_string | default('26 Jul 2024') }}
{{- '\n\n' }}
{%- if messages[0].role == 'system' %}
{{- messages[0].content | trim }}
{%- set messages = messages[1:] %}
{%- endif %}
{{- '<|eot|>' }}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|header|>ipython<|/header|>\n\n' + message.content | tojson + '<|eot|>' }}
{%- else %}
{{- '<|header|>' + message.role + '<|/header|>\n\n' }}
{%- if 'tool_calls' in message %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
{%- else %}
{%- if loop.first and tools %}{{ tools | tojson + '\n\n' }}{% endif %}
{{- message.content | trim }}
{%- endif %}
{{- '<|eot|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\n\n' }}{% endif %}"""

_CALLS = """
{%- for call in message.tool_calls %}
{%- if message.content or not loop.first %}{{ '\n' }}{% endif %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}\n</tool_call>' }}
{%- endfor %}"""
_RESULT = """
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"""

# As Qwen 2.5: tools in the system message, results of tools together in one message of the user.
QWEN = (
    """
{%- set system = messages[0].content if messages[0].role == 'system' else 'I am helpful.' %}
{{- '<|im_start|>system\n' + system }}
{%- if tools %}{{ '\n\n<tools>\n' + tools | tojson + '\n</tools>' }}{% endif %}
{{- '<|im_end|>\n' }}
{%- for message in messages %}
{%- if message.role == 'tool' %}"""
    + _RESULT
    + """
{%- elif not (loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\n' + message.content }}"""
    + _CALLS
    + """
{{- '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
)

# As Qwen 3: thoughts before the last question are dropped, and the last reply always has some.
THINKING = (
    """
{%- if messages[0].role == 'system' or tools %}
{{- '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else '') }}
{%- if tools %}{{ '\n\n<tools>\n' + tools | tojson + '\n</tools>' }}{% endif %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- set last = namespace(question=-1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'tool' %}"""
    + _RESULT
    + """
{%- elif message.role == 'assistant' %}
{%- set text = message.content.split('</think>')[-1].lstrip('\n') %}
{%- set thought = '' %}
{%- if '</think>' in message.content %}
{%- set thought = message.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > last.question and (loop.last or thought) %}
{{- '<think>\n' + thought + '\n</think>\n\n' }}
{%- endif %}
{{- text }}"""
    + _CALLS
    + """
{{- '<|im_end|>\n' }}
{%- elif not (loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""
)

# As Mistral Nemo: tools and the system message move on to the last message of the user.
MOVING = """
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- set last = messages | selectattr('role', 'equalto', 'user') | list | last == message %}
{%- if last and tools %}{{ '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}
{{- '[INST]' + (messages[0].content + '\n\n' if loop.last and messages[0].role == 'system' else '') }}
{{- message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}{{ message.content + eos_token }}
{%- elif message.role != 'system' %}{{ raise_exception('Only user and assistant, please!') }}
{%- endif %}
{%- endfor %}"""

FAMILIES = {"chatml": CHATML, "llama": LLAMA, "qwen": QWEN, "thinking": THINKING}

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


def chat_tokenizer(template: str | None, eos: str = "<|end|>") -> PreTrainedTokenizerFast:
    """Bytes, a few merges across words and line breaks, and the special tokens of all families."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    backend = Tokenizer(BPE({piece: index for index, piece in enumerate(pieces)}, list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(name, normalized=False, special=False) for name in ADDED])
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    begin = backend.token_to_id("<|begin|>")
    backend.post_processor = TemplateProcessing(  # which a template does by itself
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin|>",
        eos_token=eos,
        pad_token="<|end|>",
        chat_template=template,
    )
