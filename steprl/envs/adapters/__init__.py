"""Environments of other packages, each behind one function; the packages are optional extras."""

ADAPTERS: dict[str, str] = {
    "reasoning_gym": "steprl.envs.adapters.reasoning_gym:environment",
    "scienceworld": "steprl.envs.adapters.scienceworld:environment",
    "textarena": "steprl.envs.adapters.textarena:environment",
    "textworld_express": "steprl.envs.adapters.textworld_express:environment",
}
"""Short name -> import path, as `env.name` takes it."""
