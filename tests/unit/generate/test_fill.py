import pytest

from pretrain.data.loader import tokenizer_of
from pretrain.errors import UserError
from pretrain.generate.fill import filled, mode_of_spans, with_sentinels
from tokenizer.pieces import EOS, sentinel

TEXT = "The [X] of a file is [X]. It"


@pytest.fixture(scope="module")
def tokenizer(project):
    return tokenizer_of(project.run())


def test_blanks_are_where_training_puts_sentinels(tokenizer):
    """As if the whole text were encoded and its spans cut out."""
    found = with_sentinels(TEXT, tokenizer)
    whole = tokenizer.encode(["The name of a file is long. It"])[0].tolist()
    spans = [tokenizer.encode([word])[0].tolist() for word in ("name", "long")]
    expected, at = [], 0
    for number, span in enumerate(spans):
        begin = next(n for n in range(at, len(whole)) if whole[n : n + len(span)] == span)
        expected += [*whole[at:begin], tokenizer.id(sentinel(number))]
        at = begin + len(span)
    assert list(found) == expected + whole[at:]


def test_what_was_written_goes_into_the_blanks(tokenizer):
    first, second = tokenizer.id(sentinel(0)), tokenizer.id(sentinel(1))
    name, long = (tokenizer.encode([word])[0].tolist() for word in ("name", "very long"))
    assert filled(TEXT, [first, *name, second, *long], tokenizer) == "The name of a file is very long. It"
    assert filled(TEXT, [second, *long], tokenizer) == "The [X] of a file is very long. It"
    assert filled(TEXT, [first, second], tokenizer) == TEXT, "nothing was written for them"
    assert filled(TEXT, name, tokenizer) == TEXT, "it belongs to no blank"
    assert filled("[X] is", [first, *name, tokenizer.id(EOS)], tokenizer) == "name is"


@pytest.mark.parametrize("text", ["[X]", "[X] of", "a [X]", "a\n[X]\nb", "[X][X]"])
def test_blanks_at_any_place(tokenizer, text):
    count = text.count("[X]")
    found = with_sentinels(text, tokenizer)
    assert [token for token in found if tokenizer.is_reserved(token)] == [tokenizer.id(sentinel(n)) for n in range(count)]
    kept = tokenizer.text(token for token in found if not tokenizer.is_reserved(token))
    assert kept.strip(" ") == text.replace("[X]", "").strip(" ")


def test_texts_without_blanks_and_runs_without_spans_are_refused(project, tokenizer):
    for text in ("No blank", "[X] " * 101):
        with pytest.raises(UserError, match=r"--fill: write \[X\] where something is to be filled in, 1 to 100 times"):
            with_sentinels(text, tokenizer)
    assert mode_of_spans(project.run().recipe.data) == "[NLU]"
    assert mode_of_spans(project.run("data.denoisers=60-20-20").recipe.data) is None
    with pytest.raises(UserError, match="trained without span denoisers"):
        mode_of_spans(project.run("data.objective=causal").recipe.data)
