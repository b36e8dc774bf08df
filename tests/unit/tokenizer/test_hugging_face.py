"""A tokenizer of Hugging Face's: its own ids, its own text, and the pieces of objectives behind them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from pretrain.data.loader import open_data
from pretrain.errors import UserError
from pretrain.export.tokenizer import write_tokenizer
from tests.support.hugging_face import BEGIN, END, PIECES, make_tokenizer
from tokenizer import load_tokenizer
from tokenizer.encode import encode
from tokenizer.hugging_face import _stand_behind
from tokenizer.pieces import CLS, EOS, MASK, MODES, PAD, SEP, sentinel
from tokenizer.train import train

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


def test_pieces_behind_special_ones_keep_their_ids(folder, texts, tmp_path):
    """As those of Qwen3's that are no special ones, <think> among them."""
    shutil.copytree(folder, tmp_path / "x")
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.add_special_tokens(["<|im_start|>"])
    library.add_tokens(["<think>", "</think>"])
    library.add_special_tokens(["<|im_end|>"])
    library.add_tokens(["<tool_call>"])
    library.save(str(tmp_path / "x/tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "x")
    for text in ("a<think>b</think> c <tool_call>", *texts[:5], *TEXTS):
        ids = tokenizer.encode([text])[0].tolist()
        assert ids == library.encode(text).ids and tokenizer.text(ids) == text
    for spelt in (END, "a<|im_end|>b<|im_start|>"):
        ids = tokenizer.encode([spelt])[0].tolist()
        assert not any(map(tokenizer.is_reserved, ids)) and tokenizer.text(ids) == spelt
    assert tokenizer.own_pieces == PIECES + 5 and tokenizer.id(MODES[0]) == PIECES + 5


def test_text_never_becomes_the_end_of_text_whatever_the_folder_calls_special(folder, tmp_path):
    def ordinary(described, config):
        described["added_tokens"][0]["special"] = False

    tokenizer = load_tokenizer(changed(folder, tmp_path / "x", ordinary))
    ids = tokenizer.encode([f"a{END}b"])[0].tolist()
    assert tokenizer.id(EOS) not in ids and tokenizer.text(ids) == f"a{END}b"


def test_a_special_piece_that_others_are_made_of_is_one_line(folder, tmp_path):
    def of_others(described, config):
        first = described["model"]["merges"][0][0]
        described["added_tokens"].append({**described["added_tokens"][0], "content": first})
        described["added_tokens"][-1]["id"] = described["model"]["vocab"][first]

    with pytest.raises(UserError, match="is a part of others, which are text"):
        load_tokenizer(changed(folder, tmp_path / "x", of_others)).encode(["a"])


def test_files_from_when_ids_behind_special_pieces_were_wrong_are_refused(folder, texts, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "x")
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.add_tokens(["<think>"])
    library.save(str(tmp_path / "x/tokenizer.json"))
    now = load_tokenizer(tmp_path / "x").sha256
    with monkeypatch.context() as before:
        before.setattr("tokenizer.hugging_face._stand_behind", lambda *args: False)
        assert load_tokenizer(tmp_path / "x").sha256 != now

    def of_the_vocabulary(described, config):
        piece, token = next(iter(described["model"]["vocab"].items()))
        described["added_tokens"].append({**described["added_tokens"][0], "id": token, "content": piece, "special": False})

    assert not _stand_behind(load_tokenizer(changed(folder, tmp_path / "y", of_the_vocabulary)).library, {END}), "ids were right"
    assert _stand_behind(load_tokenizer(tmp_path / "x").library, {END})


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


def changed(folder: Path, to: Path, change) -> Path:
    """A copy of a folder whose tokenizer.json, or both files, `change` has changed."""
    shutil.copytree(folder, to)
    described, config = (json.loads((to / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    change(described, config)
    (to / "tokenizer.json").write_text(json.dumps(described))
    (to / "tokenizer_config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_an_export_of_ours_makes_the_same_tokens_as_what_it_came_from(kind, home, texts, tmp_path):
    """In a unigram vocabulary special pieces stand among the others."""
    train(str(home / "train.jsonl"), 600, tmp_path / "ours", model_type=kind)
    ours = load_tokenizer(tmp_path / "ours")
    (tmp_path / "hf").mkdir()
    write_tokenizer(ours, tmp_path / "hf", 64, is_bert=False)
    (tmp_path / "hf" / "tokenizer.model").unlink()
    theirs = load_tokenizer(tmp_path / "hf")
    assert (theirs.own_pieces, theirs.vocab_size, theirs.sentinels) == (600, 600, 100), "nothing is lacking"
    spelt = ["a</s>b", "[S2S] what <pad>", "<extra_id_0>", "<unk>"]
    for text in [*spelt, *(texts[:5] if kind == "bpe" else [])]:
        ids = theirs.encode([text])[0].tolist()
        assert ids == ours.encode([text])[0].tolist() and theirs.text(ids) == " " + text
    assert theirs.id(EOS) == ours.id(EOS) and theirs.sentinel_ids() == ours.sentinel_ids()


@pytest.mark.parametrize("template", [f"{BEGIN} $A", f"{BEGIN} $A {END}"])
def test_what_begins_a_text_is_seen_whatever_ends_it(template, texts, tmp_path):
    make_tokenizer(tmp_path, texts[:5], begin=True)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    ends = [(piece, library.token_to_id(piece)) for piece in (BEGIN, END)]
    library.post_processor = processors.TemplateProcessing(single=template, pair=f"{template} $B:1", special_tokens=ends)
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).begin == (library.token_to_id(BEGIN),)


def test_an_ordinary_piece_is_never_taken_for_a_reserved_one(folder, tmp_path):
    def with_pieces(described, config):
        model, others = described["model"], {PIECES - 2: "[MASK]", PIECES - 3: "<pad>"}
        former = {piece for piece, token in model["vocab"].items() if token in others}
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in former]
        model["vocab"] = {others.get(token, piece): token for piece, token in model["vocab"].items()}

    there = changed(folder, tmp_path / "x", with_pieces)
    tokenizer = load_tokenizer(there, PIECES)
    assert not tokenizer.is_reserved(PIECES - 2) and tokenizer.text([PIECES - 2]) == "[MASK]"
    assert tokenizer.id(PAD) == tokenizer.id(EOS) != PIECES - 3
    with pytest.raises(UserError, match="no piece"):
        tokenizer.id(MASK)
    with pytest.raises(UserError, match="ordinary pieces that are called as UL2's"):
        load_tokenizer(there)


def test_an_older_folder_names_its_pieces_in_a_map(folder, tmp_path):
    there = changed(folder, tmp_path / "x", lambda described, config: config.pop("eos_token"))
    (there / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": END}}))
    assert load_tokenizer(there).id(EOS) == load_tokenizer(folder).id(EOS)


def test_what_is_there_of_the_sentinels_is_kept_and_the_rest_added(folder, tmp_path):
    def with_one(described, config):
        described["added_tokens"].append({**described["added_tokens"][-1], "id": PIECES, "content": sentinel(0)})

    tokenizer = load_tokenizer(changed(folder, tmp_path / "x", with_one))
    assert tokenizer.sentinels == 100 and tokenizer.id(sentinel(0)) == PIECES and tokenizer.vocab_size == PIECES + ADDED


def test_gaps_among_ids_are_found_when_it_is_opened(folder, tmp_path):
    def with_gap(described, config):
        described["model"]["vocab"]["zq"] = PIECES + 40

    there = changed(folder, tmp_path / "x", with_gap)
    with pytest.raises(UserError, match="has gaps among its ids"):
        load_tokenizer(there)
    assert load_tokenizer(there, PIECES + 41).own_pieces == PIECES + 41


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", None, "tokenizer_config.json: cannot be read .*names the pieces that end a text"),
        ("tokenizer_config.json", "{}", 'names no "eos_token"'),
        ("tokenizer_config.json", "[", "tokenizer_config.json: cannot be read"),
        ("tokenizer_config.json", '{"eos_token": "<|im_end|>"}', '"eos_token" "<\\|im_end\\|>" is no piece of tokenizer.json'),
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
