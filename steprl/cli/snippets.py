"""What `steprl serve` shows to be copied: a request with curl, and one with OpenAI's client."""

import json
import shlex
from typing import Any

_CLIENT = """from openai import OpenAI
client = OpenAI(base_url={url}, api_key={key})
answer = client.{method}.create(
    model={name}, {what}
)
print(answer.choices[0].{text})"""


def snippets(url: str, name: str, prompt: str | None, token: bool) -> str:
    """Both, for a model that chats, or, with a prompt, for one that only completes.

    Args:
        url: of the API, such as `http://127.0.0.1:8000/v1`.
        name: what clients call the model.
        prompt: that it may complete; None where it has a chat template.
        token: clients send one; it stands in no command, but in the environment.
    """
    content: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}]}
    path, method, text = "chat/completions", "chat.completions", "message.content"
    if prompt is not None:
        content = {"prompt": prompt, "max_tokens": 32}
        path, method, text = "completions", "completions", "text"
    body = shlex.quote(json.dumps({"model": name, **content}))
    header = ' -H "Authorization: Bearer $STEPRL_SERVE_TOKEN"' if token else ""
    curl = (
        f"curl {shlex.quote(f'{url}/{path}')} -H 'Content-Type: application/json'{header} \\\n"
        f"  -d {body}"
    )
    client = _CLIENT.format(
        url=json.dumps(url),
        key='os.environ["STEPRL_SERVE_TOKEN"]' if token else '"none"',
        method=method,
        name=json.dumps(name),
        what=", ".join(f"{key}={json.dumps(value)}" for key, value in content.items()),
        text=text,
    )
    imports = "import os\n" if token else ""
    return f"{curl}\n\n{imports}{client}"


def example_prompt(config: Any) -> str:
    """A text that the policy of a run can complete: of its game, in its small language, if it has one."""
    from steprl.config.environments import GAMES
    from steprl.envs.games import text_game
    from steprl.envs.opening import open_game

    if config is not None and config.env.name in GAMES and config.model.path is None:
        prompt: str = text_game(open_game(config.env)).reset(0)[1]
        return prompt
    return "Once upon a time"
