"""A tokenizer of Hugging Face's: its own ids, its own text, and the pieces of objectives behind them."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from pretrain.data.loader import open_data
from pretrain.errors import UserError
from tests.support.hugging_face import BEGIN, END, PIECES, make_tokenizer
from tokenizer import load_tokenizer
from tokenizer.encode import encode
from tokenizer.pieces import CLS, EOS, MASK, MODES, PAD, SEP, sentinel

ADDED = len((*MODES, CLS, SEP, MASK)) + 100
TEXTS = ["Grüße, 世界 🙂\n\tand  two spaces ", " a", "", "def f(x):\n    return x"]


@pytest.fixture(scope="module")
def texts(home) -> list[str]:
    return [json.loads(line)["text"] for line in (home / "train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    there = tmp_path_factory.mktemp("hf")
    make_tokenizer(there, texts)
    return there


def test_tokens_are_the_librarys_and_text_comes_back(folder, texts):
    tokenizer, library = load_tokenizer(folder), Library.from_file(str(folder / "tokenizer.json"))
    for text in [*texts[:10], *TEXTS]:
        ids = tokenizer.encode([text])[0]
        assert ids.dtype == np.int32 and ids.tolist() == library.encode(text).ids
        assert tokenizer.text(ids.tolist()) == text


def test_reserved_pieces_stand_behind_its_own(folder):
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.own_pieces, tokenizer.vocab_size, tokenizer.sentinels) == (PIECES, PIECES + ADDED, 100)
    ids = [tokenizer.id(piece) for piece in (*MODES, CLS, SEP, MASK, *(sentinel(i) for i in range(100)))]
    assert ids == list(range(PIECES, PIECES + ADDED)) and all(map(tokenizer.is_reserved, ids))
    end = Library.from_file(str(folder / "tokenizer.json")).token_to_id(END)
    assert tokenizer.id(EOS) == tokenizer.id(PAD) == end and tokenizer.is_reserved(end)
    assert tokenizer.name(ids[0]) == MODES[0] and tokenizer.text([ids[0], end]) == ""
    assert len(tokenizer.word_starts()) == len(tokenizer.piece_bytes) == PIECES + ADDED
    first, last = tokenizer.text_ids()
    assert 0 <= first < last <= PIECES and not any(map(tokenizer.is_reserved, range(first, last)))


def test_without_them_it_has_its_own_pieces_alone(folder):
    tokenizer = load_tokenizer(folder, PIECES)
    assert tokenizer.vocab_size == PIECES and tokenizer.sentinels == 0
    with pytest.raises(UserError, match=rf'no piece "\[S2S\]"; set model.vocab_size to {PIECES + ADDED}'):
        tokenizer.id("[S2S]")
    assert tokenizer.sha256 == load_tokenizer(folder).sha256, "token files fit both"


def test_text_that_spells_a_special_piece_stays_text(folder):
    tokenizer = load_tokenizer(folder)
    for spelt in (END, "[S2S] <extra_id_0>"):
        ids = tokenizer.encode([spelt])[0].tolist()
        assert not any(map(tokenizer.is_reserved, ids)) and tokenizer.text(ids) == spelt


def test_documents_begin_as_the_folders_template_says(texts, tmp_path):
    make_tokenizer(tmp_path / "hf", texts, begin=True)
    tokenizer = load_tokenizer(tmp_path / "hf")
    (begin,) = tokenizer.begin
    assert tokenizer.name(begin) == BEGIN
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:5]))
    encode(str(tmp_path / "text.jsonl"), tokenizer, tmp_path / "out")
    found = np.fromfile(tmp_path / "out.bin", np.uint16).tolist()
    assert found == [token for text in texts[:5] for token in (begin, *tokenizer.encode([text])[0].tolist())]


def test_a_run_reads_files_that_it_has_encoded(folder, home, project, tmp_path):
    for name in ("train", "valid"):
        encode(str(home / f"{name}.jsonl"), load_tokenizer(folder), tmp_path / name)
    settings = [f"data.tokenizer={folder}", f"data.train={tmp_path}/train", f"data.valid={tmp_path}/valid"]
    sizes = [f"model.vocab_size={PIECES + ADDED}", "model.padded_vocab_size=640"]
    data = open_data(project.run(*settings, *sizes))
    assert data.batch(1)[0].targets.any()
    data.close()
    with pytest.raises(UserError, match=f"set model.vocab_size to {PIECES + ADDED}, or {PIECES} without the pieces of UL2"):
        open_data(project.run(*settings, "model.vocab_size=600"))
    with pytest.raises(UserError, match="data.max_example_tokens 40 needs|no piece"):
        open_data(project.run(*settings, f"model.vocab_size={PIECES}"))


def other_kind(kind: str, texts: list[str]) -> Library:
    """A tokenizer whose pieces are spelt in another way than in bytes."""
    if kind == "sentencepiece":
        library = Library(models.BPE(byte_fallback=True))
        library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        library.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
        special = ["</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        library.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
        described = json.loads(library.to_str())  # in Llama 2's the pieces of bytes are like others
        described["added_tokens"] = [one for one in described["added_tokens"] if not one["content"].startswith("<0x")]
        return Library.from_str(json.dumps(described))
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer, library.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    library.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False))
    return library


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_pieces_of_other_kinds_are_known_as_text(kind, texts, tmp_path):
    library = other_kind(kind, texts)
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path)
    text = "the statement is a list of names" if kind == "wordpiece" else "the 世界 of  names\n"
    assert tokenizer.text(tokenizer.encode([text])[0].tolist()) == " " + text
    if kind == "wordpiece":
        assert tokenizer.id(CLS) == 2 and tokenizer.id(EOS) == 3 and tokenizer.id(MASK) == 4, "BERT's own"
        assert tokenizer.vocab_size == tokenizer.own_pieces + ADDED - 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", None, "tokenizer_config.json: cannot be read .*names the pieces that end a text"),
        ("tokenizer_config.json", "{}", 'names no "eos_token"'),
        ("tokenizer_config.json", "[", "tokenizer_config.json: cannot be read"),
        ("tokenizer.json", '{"model": {}, "added_tokens": []}', "cannot be read by the library tokenizers"),
        ("tokenizer.json", '{"vocab": []}', "no tokenizer here"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(name, content, message, texts, tmp_path):
    make_tokenizer(tmp_path, texts[:2])
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
