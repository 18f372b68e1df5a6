"""The same game played as text."""

from steprl.config import MultihopConfig
from steprl.envs.games import GameText
from steprl.envs.multihop import language as words
from steprl.envs.multihop.env import Multihop


class MultihopText(GameText):
    """Plays `search <name> <relation>` or `answer <name>`; anything else gets the reason it is invalid."""

    def __init__(self, config: MultihopConfig | None = None, heldout: bool = False):
        game = Multihop(config or MultihopConfig(), heldout)
        super().__init__(game, words.vocabulary(), words.END_ID)
