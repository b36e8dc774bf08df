import pytest

from pretrain.data.loader import tokenizer_of
from pretrain.engine import build_engine
from pretrain.generate.sampling import Sampling
from pretrain.generate.write import Prompt, until, write
from tokenizer.pieces import EOS


@pytest.fixture(scope="module")
def model(project, ranks):
    run = project.run("data.sequence_length=96")
    return build_engine(run, ranks), ranks, tokenizer_of(run)


def prompts(tokenizer, *texts, **changes) -> list[Prompt]:
    asked = {"both_ways": True, "max_tokens": 12, **changes}
    return [Prompt(tuple(map(int, tokenizer.encode([text])[0])), **asked) for text in texts]


TEXTS = [f"A text {'of some length ' * (n % 7)}number {n}" for n in range(20)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0.9, 5)])
def test_company_changes_nothing(model, sampling):
    engine, ranks, tokenizer = model
    asked, end = prompts(tokenizer, *TEXTS), tokenizer.id(EOS)
    together = write(engine, ranks, tokenizer, asked, end, sampling)
    assert write(engine, ranks, tokenizer, asked[:3], end, sampling) == together[:3]
    if sampling.temperature == 0:
        assert write(engine, ranks, tokenizer, asked[::-1], end, sampling)[::-1] == together
    assert all(len(written) <= 12 for written in together) and len(set(together)) > 3


def test_it_ends_where_it_is_told_to(model):
    engine, ranks, tokenizer = model
    sampling = Sampling(1.0, seed=2)  # greedy, a model that has learned nothing says one thing over and over
    (asked,) = prompts(tokenizer, TEXTS[3])
    (written,) = write(engine, ranks, tokenizer, [asked], -1, sampling)
    assert len(written) == 12 and len(set(written)) > 6
    (ended,) = write(engine, ranks, tokenizer, [asked], written[5], sampling)
    assert ended == written[: written.index(written[5])], "the end itself is left out"
    text = tokenizer.text(written[:8])
    stop = next(text[begin : begin + 3] for begin in range(4, len(text)) if text[begin : begin + 3] not in text[: begin + 2])
    (stopping,) = prompts(tokenizer, TEXTS[3], stop=(stop,))
    (stopped,) = write(engine, ranks, tokenizer, [stopping], -1, sampling)
    assert stopped == written[: len(stopped)] and stop in tokenizer.text(stopped) and stop not in tokenizer.text(stopped[:-1])
    assert until(tokenizer.text(stopped), (stop,)) == text[: text.index(stop)] and until("abc", ("x",)) == "abc"
    (short,) = prompts(tokenizer, TEXTS[0], max_tokens=3)
    found = write(engine, ranks, tokenizer, [asked, short], -1, sampling)
    assert [len(one) for one in found] == [12, 3] and found[0] == written
