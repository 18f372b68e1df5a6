"""Environments of other packages, each behind one function; the packages are optional extras."""

ADAPTERS: dict[str, str] = {
    "alfworld": "steprl.envs.adapters.alfworld:environment",
    "gymnasium": "steprl.envs.adapters.gymnasium:environment",
    "reasoning_gym": "steprl.envs.adapters.reasoning_gym:environment",
    "scienceworld": "steprl.envs.adapters.scienceworld:environment",
    "textarena": "steprl.envs.adapters.textarena:environment",
    "textworld": "steprl.envs.adapters.textworld:environment",
    "textworld_express": "steprl.envs.adapters.textworld_express:environment",
}
"""Short name -> import path, as `env.name` takes it."""
