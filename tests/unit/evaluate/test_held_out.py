import math

import numpy as np
import pytest

from pretrain.data.loader import streams_of, tokenizer_of
from pretrain.engine import build_engine
from pretrain.evaluate.held_out import HeldOut
from pretrain.evaluate.measure import Asking, measure


@pytest.mark.parametrize("mode", [None, "[S2S]"])
def test_every_token_of_a_document_but_windows_first_is_scored_once(project, mode):
    run = project.run()
    tokenizer, ((_, stream),) = tokenizer_of(run), streams_of(run).values()
    asking, length = Asking(10**6, 1, 0, "prefix", mode), 64
    posed, skipped = HeldOut(stream).posed(asking, tokenizer, length)
    ends = [int(end) for end in stream.ends]
    begins = [0, *ends[:-1]]
    assert skipped == 0 and {one.cluster for one in posed} == {str(n) for n, (b, e) in enumerate(zip(begins, ends)) if e - b > 1}
    for document, (begin, end) in enumerate(zip(begins, ends)):
        own = [one.requests[0] for one in posed if one.cluster == str(document)]
        read = [token for request in own for token in (*request.context[-1:], *request.continuation)]
        expected = stream.tokens[begin:end].tolist()
        assert read == expected[: len(read)] and len(expected) - len(read) <= 1, "a last token alone has nothing to predict"
        assert all(request.positions <= length for request in own)
    for one in posed:
        assert one.answer_bytes == len(b"".join(tokenizer.piece_bytes[token] for token in one.requests[0].continuation))
    first = posed[: len({one.cluster for one in posed})]
    assert len({one.cluster for one in first}) == len(first), "the first window of each document comes first"


def test_bits_are_those_of_a_plain_sum(project, ranks):
    run = project.run()
    engine, tokenizer, ((_, stream),) = build_engine(run, ranks), tokenizer_of(run), streams_of(run).values()
    posed, _ = HeldOut(stream).posed(Asking(5, 1, 0, "causal", None), tokenizer, 64)
    found = measure(engine, posed, 0, both_ways=False)
    assert found.values.keys() == {"greedy", "bits_per_byte"} and len(found.numbers) == 5
    per_token = math.log2(tokenizer.vocab_size)  # before training every token is about as likely
    expected = [per_token * len(one.requests[0].continuation) / one.answer_bytes for one in posed]
    assert np.allclose(found.values["bits_per_byte"], expected, rtol=0.05)
