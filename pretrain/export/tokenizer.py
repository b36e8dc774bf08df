"""A tokenizer as tokenizer.json, which Hugging Face's libraries read: made from a sentencepiece model, or as it came from
there."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HuggingFaceTokenizer

from tokenizer.hugging_face import CONFIG, HuggingFacePieces
from tokenizer.pieces import CLS, EOS, MASK, PAD, SEP, UNKNOWN, Tokenizer
from tokenizer.sentence_pieces import MODEL, SentencePieces

SPACE = "\u2581"
"""What sentencepiece writes for a space."""


COPIED = (CONFIG, "special_tokens_map.json", "chat_template.jinja")
"""Files of a tokenizer of Hugging Face's beside its pieces."""


def special_pieces(is_bert: bool) -> dict[str, str]:
    """Pieces that transformers asks for, by its names."""
    pieces = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNKNOWN}
    return {**pieces, "cls_token": CLS, "sep_token": SEP, "mask_token": MASK} if is_bert else pieces


def write_tokenizer(tokenizer: Tokenizer, folder: Path, longest: int, is_bert: bool) -> None:
    """Write the files of a tokenizer.

    Args:
        longest: tokens that the model was trained on at a time.
        is_bert: whether texts stand between [CLS] and [SEP].
    """
    if isinstance(tokenizer, HuggingFacePieces):
        tokenizer.with_added().save(str(folder / tokenizer.file.name))
        for name in COPIED:
            if (file := tokenizer.directory / name).is_file():
                (folder / name).write_bytes(file.read_bytes())
    else:
        assert isinstance(tokenizer, SentencePieces), "there are two kinds"
        _write_sentence_pieces(tokenizer, folder, longest, is_bert)


def _write_sentence_pieces(tokenizer: SentencePieces, folder: Path, longest: int, is_bert: bool) -> None:
    """tokenizer.json, tokenizer_config.json and the sentencepiece model itself.

    Unlike here, where only the program makes reserved pieces, text that spells one becomes that piece: people write prompts so.
    Spaces around it go, because a text between reserved pieces begins with a word in training.
    """
    processor = tokenizer.processor
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(tokenizer.vocab_size)]
    out = HuggingFaceTokenizer(_model(pieces, processor.piece_to_id(UNKNOWN), tokenizer.manifest["settings"]["model_type"]))
    out.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    out.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}[^{SPACE}]*"), "isolated")
    out.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    reserved = [piece for i, (piece, _) in enumerate(pieces) if processor.is_control(i)]
    out.add_special_tokens([AddedToken(piece, normalized=False, special=True, lstrip=True, rstrip=True) for piece in reserved])
    if is_bert:
        ends = [(piece, tokenizer.id(piece)) for piece in (CLS, SEP)]
        out.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1", special_tokens=ends
        )
    out.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
    }
    if is_bert:
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **special_pieces(is_bert)}, indent=2) + "\n")
    (folder / MODEL).write_bytes(tokenizer.file.read_bytes())


def _model(pieces: list[tuple[str, float]], unknown: int, kind: str) -> models.Model:
    if kind == "unigram":
        return models.Unigram(pieces, unk_id=unknown, byte_fallback=True)
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    return models.BPE(ids, _merges(pieces, ids), unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)


def _merges(pieces: list[tuple[str, float]], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, best first; sentencepiece goes by the score of what is made."""
    merges = []
    for piece, score in pieces:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece)) if piece[:cut] in ids and piece[cut:] in ids]
        merges += [(-score, ids[left], ids[right], left, right) for left, right in pairs]
    return [(left, right) for _, _, _, left, right in sorted(merges)]
