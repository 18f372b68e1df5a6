"""GGUF files in: settings, weights and tokenizer, by the `gguf` package; neither torch nor a hub.

    file = read_gguf("model.gguf")
    config = gguf_config(file, value_head="shared")
    params = load_gguf(file, config, mesh=mesh)
    tokenizer = gguf_tokenizer(file)

Quantised weights are turned into floats as they are placed. What is trained from them is no longer
quantised; it is exported with `steprl.models.pretrained.save_pretrained`.
"""

import jax
from jax.sharding import Mesh

from steprl.models.gguf_config import gguf_config
from steprl.models.gguf_file import GGUF, read_gguf
from steprl.models.gguf_tokenizer import gguf_tokenizer
from steprl.models.presets import DecoderConfig
from steprl.models.weights import place_parameters
from steprl.types import Params

__all__ = ["GGUF", "gguf_config", "gguf_tokenizer", "load_gguf", "read_gguf"]


def load_gguf(
    file: GGUF,
    config: DecoderConfig,
    *,
    mesh: Mesh | None = None,
    key: jax.Array | None = None,
) -> Params:
    """Parameters from a GGUF file, dequantised and placed one tensor at a time.

    Args:
        file: from `read_gguf`.
        config: from `gguf_config`.
        mesh: places by the rules of `steprl.sharding`; None for the default device.
        key: of a new value head; None for `jax.random.key(0)`.

    Returns:
        Nested dicts as from `make_policy(config).init`; a new value head gives 0, and a separate
        critic starts as a copy of the model.

    Raises:
        ValueError: tensors are missing, not expected, of another shape, or not finite; the message names
            them.
    """
    return place_parameters(config, file.weights, mesh=mesh, key=key, where=str(file.path))
