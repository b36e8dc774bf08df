import pytest

from pretrain.evaluate.answers import exact_match, f1, normalized


def test_texts_are_normalised_as_squad_does():
    assert normalized(" The  U.S. Army, an  army ") == "us army army"


@pytest.mark.parametrize(
    "text, answers, exact, overlap",
    [
        ("the Eiffel Tower", ["Eiffel Tower"], 1, 1),
        ("Eiffel", ["Eiffel Tower", "tower"], 0, 2 / 3),
        ("a tower of Eiffel", ["Eiffel Tower"], 0, 4 / 5),
        ("", ["x"], 0, 0),
        ("the", ["a"], 1, 1),
        ("no no yes", ["no"], 0, 1 / 2),
    ],
)
def test_the_best_of_the_answers_counts(text, answers, exact, overlap):
    assert exact_match(text, answers) == exact and f1(text, answers) == pytest.approx(overlap)
