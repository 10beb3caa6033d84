"""Styles: impossible ones are refused, and each sample draws its own by weight."""

from collections import Counter
from itertools import permutations
from typing import Any

import pytest

from infra.config import ConfigError, build
from infra.schema import digest
from operators.caption_style import Draft, NoStyleError, Style, draft, draw


def drafts(**weights: float) -> list[Draft]:
    return [
        Draft(Style(name=name, prompt="Say it.", weight=weight), "Say it.")
        for name, weight in weights.items()
    ]


def drawn(of: list[Draft], id_: str, seed: int = 0, count: int = 1) -> list[str]:
    return [one.style.name for one in draw(of, id_, seed, count)]


def test_the_first_is_drawn_by_weight_and_the_second_among_the_rest() -> None:
    styles = drafts(long=6, short=3, tags=1)
    pairs = Counter(tuple(drawn(styles, digest(str(i)), 0, 2)) for i in range(20_000))
    total = {"long": 6, "short": 3, "tags": 1}
    for first, second in permutations(total, 2):
        expected = total[first] / 10 * total[second] / (10 - total[first])
        assert abs(pairs[first, second] / 20_000 - expected) < 0.012, (first, second)


def test_a_draw_is_the_samples_own() -> None:
    styles = drafts(a=1, b=2, c=0.5, d=1)
    for number in range(200):
        id_ = digest(str(number))
        order = drawn(styles, id_, 3, 4)
        assert sorted(order) == list("abcd")
        assert drawn(styles[::-1], id_, 3, 2) == order[:2]
        without = [one for one in styles if one.style.name != "b"]
        assert drawn(without, id_, 3, 4) == [name for name in order if name != "b"]
        assert drawn(styles, id_, 3, 9) == order
    seeds = {tuple(drawn(styles, "x", seed, 4)) for seed in range(20)}
    assert len(seeds) > 5


def test_only_styles_that_can_be_asked_are_drafted() -> None:
    styles = (
        Style(name="given"),
        Style(name="plain", prompt="Say it."),
        Style(name="world", prompt="Of {metadata.title}."),
    )

    def names(**row: Any) -> dict[str, str]:
        row = {"caption": None, "metadata": None, **row}
        return {one.style.name: one.text for one in draft(styles, row, 100)}

    assert names() == {"plain": "Say it."}
    assert names(caption=" A cat. ") == {"given": "A cat.", "plain": "Say it."}
    assert names(metadata='{"title": "Cats"}') == {"plain": "Say it.", "world": "Of Cats."}
    needy = (styles[0], styles[2])
    with pytest.raises(NoStyleError, match=r"has no \{caption\}, \{metadata\.title\}$") as raised:
        draft(needy, {"caption": " ", "metadata": "{}"}, 100)
    assert raised.value.type == "missing_variable"
    with pytest.raises(NoStyleError) as raised:
        draft(styles[:1], {"caption": None}, 100)
    assert raised.value.type == "no_caption"


def test_a_cut_value_is_noted_after_the_checks() -> None:
    style = Style(name="refine", prompt="Improve: {caption}", min_characters=0, max_characters=9)
    [one] = draft([style], {"caption": "word " * 9}, 10)
    assert one.checks("A small cat.", None, None) == ["too_long", "value_cut"]
    assert one.checks("A cat.", None, None) == ["value_cut"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x"}, "style `x` has no prompt"),
        ({"name": "given", "prompt": "Say it."}, "style `given` has a prompt"),
        ({"name": "x", "prompt": "gone.txt"}, "gone.txt does not exist"),
        ({"name": "x", "prompt": "Say.", "weight": 0}, "`weight` is 0.0: must be above 0"),
        ({"name": "x", "prompt": "Say.", "weight": float("inf")}, "`weight` is inf"),
        ({"name": "x", "prompt": "Say.", "max_tokens": 0}, "`max_tokens` is 0: at least 1"),
        ({"name": "x", "prompt": "Say.", "max_characters": 3}, "`max_characters` 3: expected"),
    ],
)
def test_impossible_styles(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Style, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
