"""Cheap checks of a caption's text: each names a defect, none of them drops the row.

    empty       nothing but white space (no other check is made)
    too_short   fewer than 12 characters
    too_long    more than 4,000 characters: not a caption any more
    truncated   the endpoint stopped at ``max_tokens``, so the last sentence is cut
    refusal     it opens as a model does that declines to answer
    repeated    of at least 12 words, fewer than half of the word triples are distinct; or one
                character runs on 20 times
    markup      HTML tags, Markdown fences or headings, or control characters

Whether a failed check costs a row is for the recipe's rules to say (``len(checks) = 0``).
"""

import re

MIN_CHARACTERS = 12
MAX_CHARACTERS = 4_000
MIN_WORDS_FOR_REPEATS = 12

_REFUSAL = re.compile(
    r"(i['’]?m (very )?(sorry|unable)|i am (very )?(sorry|unable)|sorry,|i apologi[sz]e"
    r"|i (can['’]?t|cannot|can not|won['’]?t|will not) (assist|help|describe|identify|provide|see)"
    r"|as an ai\b|as a (large )?language model)",
    re.IGNORECASE,
)
_RUN = re.compile(r"(\S)\1{19}")
_MARKUP = re.compile(
    r"</?[a-z][a-z0-9]*(\s[^<>]*)?/?>|```|^#{1,6} |[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
    re.IGNORECASE | re.MULTILINE,
)


def check(text: str, finish_reason: str | None = None) -> list[str]:
    """The names of the checks that ``text`` does not pass, in the order of the module's list.

    ``finish_reason`` is the endpoint's word for why it stopped (``length`` = at ``max_tokens``).
    """
    text = text.strip()
    if not text:
        return ["empty"]
    found = {
        "too_short": len(text) < MIN_CHARACTERS,
        "too_long": len(text) > MAX_CHARACTERS,
        "truncated": finish_reason == "length",
        "refusal": _REFUSAL.match(text) is not None,
        "repeated": _repeated(text),
        "markup": _MARKUP.search(text) is not None,
    }
    return [name for name, failed in found.items() if failed]


def _repeated(text: str) -> bool:
    words = text.lower().split()
    if _RUN.search(text):
        return True
    if len(words) < MIN_WORDS_FOR_REPEATS:
        return False
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 2 * len(set(triples)) < len(triples)
