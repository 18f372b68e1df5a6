"""Step-level reinforcement learning of LLM agents in JAX.

Tokens point at steps: every token row carries `step_ids`, the index of the step whose action
sampled the token, or -1. Masks, step starts, pooling and credit all derive from that integer.

Importing the package imports nothing else and touches no device. Import what you need:

    from steprl import ops                     # pure functions on arrays
    from steprl.checkpoint import Checkpointer
"""

__version__ = "0.1.0"
