"""Words for the tests of documents, help texts, messages and comments."""

import re

# Phrases that a reader has to read twice, or that have a common word.
ODD = re.compile(
    r"\b(?:will do|go(?:es)? on|anew|for ever|shall|whoever|meanwhile|beside|remarks?|"
    r"(?<!about:)blanks?|moments?|upkeep|outlives?|(?:is|are) (?:away|back)|"
    r"out of reach|(?:that|those) of|"
    r"also (?:if|when|as)|by which|is such as|may not|"
    r"(?<!there )(?:is|are|was) no (?!longer|more)\w+|"
    r"(?:clients?|tools?|errors?) of (?:MCP|JSON-RPC)|says? so|answered? (?:200|4\d\d|5\d\d))\b",
    re.IGNORECASE,
)
# Names that do not say what they hold.
FILLERS = {"each", "found", "given", "here", "more", "own", "said", "wanted"}
