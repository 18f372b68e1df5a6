"""Environments of other packages, each behind one function; the packages are optional extras.

`steprl.config.environments.ADAPTERS` lists them: the function of each is `environment` of the module of
that name. They need nothing of this package but the protocol, so they also work without JAX.
"""
