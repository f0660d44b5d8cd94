"""Words for the tests of documents, help texts, messages and comments."""

import re
from collections.abc import Iterable

# Phrases that a reader has to read twice, or that have a common word -> the word to use.
PLAIN_WORDS = {
    r"(?:is|are|was|were|be|been) told|hears|heard": "is notified, receives",
    r"(?:is|are|was|were|be|been) kept|upkeep": "store, retain; maintenance",
    r"(?:is|are) (?:20[0-4]|304|4[0-2]\d|50[0-4])(?! (?:KB|MB|bytes|ms|s))": "returns 404",
    r"answered? (?:200|4\d\d|5\d\d)": "returns 404",
    r"folders?": "directory",
    r"(?:an?|one|each|every|no) mail(?! server)": "email",
    r"an? \w+ of (?:its|their|your|our|one['’]s) own": "its own, a separate",
    r"pages? of (?:an?|the|one|its) (?:task|agent)|(?:task|agent)['’]s page": "task page",
    r"processors?": "CPU",
    r"exit codes?": "exit status",
    r"\d+ %": "20%",
    r"for good|for ever": "permanently",
    r"in (?:its |their )?place of": "instead of",
    r"by the clock(?! of)": "on a schedule",
    r"one sentence": "summary, reason, line",
    r"promis(?:e[sd]?|ing)|prov(?:e[sdn]?|ing)|proofs?": "guarantee, test",
    r"private authorit(?:y|ies)": "private CA",
    r"anew": "again",
    r"go(?:es)? on": "continues",
    r"(?:is|are) (?:away|back)|out of reach": "unavailable, reachable again",
    r"remarks?": "notice",
    r"moments?": "time",
    r"(?<!about:)blanks?": "space",
    r"outlives?": "outlasts, remains after",
    r"meanwhile": "at the same time",
    r"beside": "next to",
    r"shall|will do": "must, does",
    r"may not": "must not, can't",
    r"(?<!there )(?:is|are|was) no (?!longer|more)\w+": "is not a",
    r"whoever|says? so": "a subject that has a name",
    r"(?:that|those) of|by which": "the noun again",
    r"also (?:if|when|as)|is such as": "even if, like",
    r"(?:clients?|tools?|errors?) of (?:MCP|JSON-RPC)": "MCP clients",
}
_ODD = re.compile(rf"(?<!\w)(?:{'|'.join(PLAIN_WORDS)})(?!\w)", re.IGNORECASE)
# Names that do not say what they hold.
FILLERS = {"each", "found", "given", "here", "more", "own", "said", "wanted"}


def odd_phrases(texts: Iterable[str]) -> dict[str, str]:
    """The phrases in these texts that have a plain word, and these words; without quoted code."""
    prose = (re.sub(r"\s+", " ", re.sub(r"`[^`]*`", "", text)) for text in texts)
    return {phrase: _plain_word(phrase) for text in prose for phrase in _ODD.findall(text)}


def _plain_word(phrase: str) -> str:
    patterns = (re.compile(pattern, re.IGNORECASE) for pattern in PLAIN_WORDS)
    words = zip(patterns, PLAIN_WORDS.values(), strict=True)
    return next(word for pattern, word in words if pattern.fullmatch(phrase))
