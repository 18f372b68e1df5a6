"""Environments of other packages, each behind one function; the packages are optional extras."""

from steprl.config import environments

ADAPTERS = {name: f"steprl.envs.adapters.{name}:environment" for name in environments.ADAPTERS}
"""Short name -> import path, as `env.name` takes it."""
