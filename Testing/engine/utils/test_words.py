"""Words for sentences, and the cards of models that use them."""

from __future__ import annotations

from segmamba.training.dataset.package import held_out, limits_of
from segmamba.training.dataset.results import FoldResults
from segmamba.utils.words import counted


def test_one_thing_is_counted_in_the_singular() -> None:
    assert [counted(number, "case") for number in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert [counted(number, "vertebra", "vertebrae") for number in (1, 2)] == ["1 vertebra", "2 vertebrae"]


def test_the_card_of_a_single_case_says_so() -> None:
    one, two = (FoldResults("0", number, {f"case {n}": {"liver": 0.9} for n in range(number)}) for number in (1, 2))
    assert limits_of(one, [one])[0].startswith("It has seen 1 case of one data set:")
    assert limits_of(two, [two])[0].startswith("It has seen 2 cases of one data set:")
    assert held_out("livers", one) == "1 held-out case of livers (fold 0)"
    assert held_out("livers", two) == "2 held-out cases of livers (fold 0)"
