"""Words of the game and their token ids: 0 pad, 1 end of action, 2 unknown, then the vocabulary."""

from steprl.models.tokenizer import END, PAD, UNKNOWN

RELATIONS = (
    "mother", "father", "teacher", "founder", "doctor", "friend",
    "rival", "boss", "neighbour", "landlord", "heir", "mentor",
)  # fmt: skip

ENTITIES = (
    "Ada", "Bela", "Carl", "Dora", "Emil", "Fanny", "Gustav", "Hedy", "Ivan", "Jana", "Karl", "Lena",
    "Max", "Nora", "Otto", "Paula", "Quinn", "Rosa", "Sven", "Tilda", "Ugo", "Vera", "Willy", "Xenia",
    "Yann", "Zoe", "Anton", "Berta", "Cyril", "Daria", "Egon", "Flora", "Georg", "Hanna", "Igor",
    "Julia", "Kurt", "Lotte", "Milan", "Nina", "Oskar", "Petra", "Rolf", "Sonja", "Timo", "Ursula",
    "Viktor", "Wanda", "Axel", "Bruno", "Clara", "David", "Erika", "Felix", "Greta", "Hugo", "Ines",
    "Jonas", "Katja", "Leo", "Maria", "Nils", "Olga", "Peter", "Rita", "Simon", "Tanja", "Urs",
    "Valerie", "Wolf", "Agnes", "Boris", "Conny", "Dirk", "Elsa", "Frida", "Gerd", "Heidi", "Ingo",
    "Judith", "Klaus", "Lisa", "Marta", "Nico", "Oda", "Pia", "Ralf", "Sara", "Theo", "Ute", "Vito",
    "Wilma", "Alma", "Benno", "Cora", "Dino",
)  # fmt: skip

_PHRASES = (
    "search",
    "answer",
    "who is the",
    "of the",
    "of",
    "?",
    "no result, try again",
    "done",
    "invalid: begin with search or answer",
    "invalid: search needs a name and a relation",
    "invalid: answer needs one name",
)


def vocabulary() -> tuple[str, ...]:
    """Phrases in the order of their ids, after the three special tokens."""
    return (*_PHRASES, *RELATIONS, *ENTITIES)


_IDS = {name: index for index, name in enumerate((PAD, END, UNKNOWN, *vocabulary()))}
PAD_ID, END_ID = _IDS[PAD], _IDS[END]
SEARCH, ANSWER, WHO, OF_THE, OF, ASK = (_IDS[name] for name in _PHRASES[:6])
NO_RESULT, DONE, BAD_VERB, BAD_SEARCH, BAD_ANSWER = (_IDS[name] for name in _PHRASES[6:])
FIRST_RELATION, FIRST_ENTITY = _IDS[RELATIONS[0]], _IDS[ENTITIES[0]]
VOCAB_SIZE = len(_IDS)
