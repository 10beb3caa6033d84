"""Cheap checks of a caption's text: each names a defect, none of them drops the row.

    empty       nothing but white space (no other check is made)
    too_short   fewer characters than its style allows (12)
    too_long    more than its style allows (4,000: not a caption any more)
    truncated   the endpoint stopped at ``max_tokens``, so the last sentence is cut
    refusal     it opens as a model does that declines to answer, in one of nine languages
    repeated    of at least 12 words, fewer than half of the word triples are distinct; or one
                character runs on 20 times
    markup      HTML tags, Markdown fences or headings, or control characters
    echo        eight words in a row are those of the prompt
    language    py3langid is at least 80% sure of another language than the one expected

and of its making, noted by `operators.caption`:

    value_cut   a value that its prompt was given was too long and went in cut

Whether a failed check costs a row is for the recipe's rules to say (``len(checks) = 0``).
"""

import re
from functools import lru_cache
from typing import Any

from infra.config import ConfigError

MIN_CHARACTERS = 12
MAX_CHARACTERS = 4_000
MIN_WORDS_FOR_REPEATS = 12
ECHO_WORDS = 8
SURE = 0.8
LANGUAGE_CHARACTERS = 2_000  # enough to tell a language by

_REFUSAL = re.compile(
    r"(i['’]?m (very )?(sorry|unable)|i am (very )?(sorry|unable)|sorry,|i apologi[sz]e"
    r"|i (can['’]?t|cannot|can not|won['’]?t|will not) (assist|help|describe|identify|provide|see)"
    r"|as an ai\b|as a (large )?language model"
    r"|es tut mir leid|(je suis )?désolée?,|lo siento,|mi dispiace,|desculpe,|(很?抱歉|对不起)[,，]"
    r"|申し訳(ありません|ございません)|죄송(합니다|하지만))",
    re.IGNORECASE,
)
_RUN = re.compile(r"(\S)\1{19}")
_MARKUP = re.compile(
    r"</?[a-z][a-z0-9]*(\s[^<>]*)?/?>|```|^#{1,6} |[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
    re.IGNORECASE | re.MULTILINE,
)


def check(
    text: str,
    finish_reason: str | None = None,
    *,
    min_characters: int = MIN_CHARACTERS,
    max_characters: int = MAX_CHARACTERS,
    prompt: str = "",
    language: str | None = None,
) -> list[str]:
    """The names of the checks that ``text`` does not pass, in the order of the module's list.

    ``finish_reason`` is the endpoint's word for why it stopped (``length`` = at ``max_tokens``),
    ``prompt`` the wording of the prompt without its values, ``language`` a code of ISO 639-1.
    """
    text = text.strip()
    if not text:
        return ["empty"]
    found = {
        "too_short": len(text) < min_characters,
        "too_long": len(text) > max_characters,
        "truncated": finish_reason == "length",
        "refusal": _REFUSAL.match(text) is not None,
        "repeated": _repeated(text),
        "markup": _MARKUP.search(text) is not None,
        "echo": not _runs_of_words(prompt).isdisjoint(_runs_of_words(text)) if prompt else False,
        "language": language is not None and _is_of_another_language(text, language),
    }
    return [name for name, failed in found.items() if failed]


def check_language(language: str) -> None:
    """Raises ConfigError unless ``language`` can be told from others here."""
    known = _identifier().labels
    if language not in known:
        raise ConfigError(f"caption: `language` is {language!r}: choose one of {', '.join(known)}")


def _repeated(text: str) -> bool:
    words = text.lower().split()
    if _RUN.search(text):
        return True
    if len(words) < MIN_WORDS_FOR_REPEATS:
        return False
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 2 * len(set(triples)) < len(triples)


@lru_cache(maxsize=32)
def _runs_of_words(text: str) -> frozenset[str]:
    words = re.findall(r"\w+", text[: 4 * MAX_CHARACTERS].lower())
    return frozenset(
        " ".join(words[i : i + ECHO_WORDS]) for i in range(len(words) - ECHO_WORDS + 1)
    )


def _is_of_another_language(text: str, language: str) -> bool:
    found, probability = _identifier().classify(text[:LANGUAGE_CHARACTERS])
    return found != language and probability >= SURE


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid import langid
    except ImportError:
        raise ConfigError(
            "the check of a caption's `language` needs py3langid: pip install 'nextscale[text]'"
        ) from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
