import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.tokenization_llama import LlamaTokenizer

from factories_gguf import write_gguf
from factories_models import IM_END, make_tiny_model, make_tiny_tokenizer
from glinthawk.errors import InvalidRequest, UnsupportedModel
from glinthawk.models.hf_tokenizer import HuggingFaceTokenizer, load_tokenizer
from glinthawk.models.source import resolve_model
from glinthawk.models.tokenizer import (
    IncrementalDetokenizer,
    TokenIdsOnly,
    Tokenizer,
    decode,
)

BYTE_LEVEL = HuggingFaceTokenizer(make_tiny_tokenizer())
MESSAGES = [{"role": "user", "content": "hello"}]


def _sentencepiece() -> Any:
    """Return a tokenizer as Llama 2 has it: spaces as U+2581, byte fallback."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abcdehlorw", "he", "ll", "hell", "hello", "\u2581hello"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("\u2581", "hello")]
    return LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)


SENTENCEPIECE = HuggingFaceTokenizer(_sentencepiece())


def _decode_in_steps(tokenizer: Tokenizer, tokens: list[int], **options: bool) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, **options)
    pieces = [detokenizer.push([token]) for token in tokens]
    return "".join(pieces) + detokenizer.finish()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["bytes", "pieces"])
@pytest.mark.parametrize("text", ["hello world", "hello  a", "naïve 一句话 🙂🏽", "a\n\nb\t", ""])
def test_text_comes_back_as_it_went_in(tokenizer: HuggingFaceTokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert decode(tokenizer, tokens) == text
    assert _decode_in_steps(tokenizer, tokens, after_prompt=False) == text


@given(st.text(max_size=60))
def test_pieces_add_up_to_the_text(text: str) -> None:
    tokens = BYTE_LEVEL.encode(text)
    # A special token's own spelling in the text is a special token, as in transformers.
    if not any(BYTE_LEVEL.is_special(token) for token in tokens):
        assert _decode_in_steps(BYTE_LEVEL, tokens) == text


def test_any_tokens_decode_as_in_transformers() -> None:
    reference = make_tiny_tokenizer()
    rng = random.Random(0)
    for _ in range(300):
        tokens = [rng.randrange(384) for _ in range(rng.randrange(1, 30))]
        expected = reference.decode(tokens, skip_special_tokens=True)
        assert decode(BYTE_LEVEL, tokens) == expected
        assert _decode_in_steps(BYTE_LEVEL, tokens) == expected


@pytest.mark.parametrize("text", ["  hello", "hello", "a\u2581b", "\n hello", "一 hello"])
def test_sentencepiece_decodes_as_in_transformers(text: str) -> None:
    reference = _sentencepiece()
    tokens = SENTENCEPIECE.encode(text)
    assert tokens == reference.encode(text)
    assert decode(SENTENCEPIECE, tokens) == reference.decode(tokens, skip_special_tokens=True)


def test_a_character_waits_for_its_last_byte() -> None:
    tokens = BYTE_LEVEL.encode("🙂")
    assert len(tokens) == 4
    detokenizer = IncrementalDetokenizer(BYTE_LEVEL)
    assert [detokenizer.push([token]) for token in tokens] == ["", "", "", "🙂"]
    assert detokenizer.finish() == ""


def test_a_character_that_never_ends_becomes_a_replacement() -> None:
    detokenizer = IncrementalDetokenizer(BYTE_LEVEL)
    assert detokenizer.push(BYTE_LEVEL.encode("🙂")[:3]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_the_space_of_sentencepiece_is_kept_after_a_prompt() -> None:
    tokens = SENTENCEPIECE.encode("hello", add_special_tokens=False)
    assert _decode_in_steps(SENTENCEPIECE, tokens, after_prompt=False) == "hello"
    assert _decode_in_steps(SENTENCEPIECE, tokens) == " hello"


def test_special_tokens_are_left_out_unless_wanted() -> None:
    tokens = BYTE_LEVEL.encode(f"a{IM_END}b")
    assert decode(BYTE_LEVEL, tokens) == "ab"
    assert decode(BYTE_LEVEL, tokens, skip_special_tokens=False) == f"a{IM_END}b"


def test_encoding_adds_the_beginning_token_only_when_asked() -> None:
    assert SENTENCEPIECE.encode("hello")[0] == 1
    assert SENTENCEPIECE.encode("hello", add_special_tokens=False)[0] != 1


def test_bytes_of_a_token_are_exact_where_its_text_is_not() -> None:
    tokens = BYTE_LEVEL.encode("🙂")
    assert b"".join(map(BYTE_LEVEL.token_bytes, tokens)) == "🙂".encode()
    assert BYTE_LEVEL.token_text(tokens[0]).startswith("bytes:\\x")
    byte_token = 3 + 0xF0
    assert SENTENCEPIECE.token_bytes(byte_token) == b"\xf0"
    assert SENTENCEPIECE.token_text(SENTENCEPIECE.encode("hello")[1]) == " hello"


def test_an_id_beyond_the_vocabulary_has_no_text() -> None:
    assert BYTE_LEVEL.vocab_size == 384
    assert BYTE_LEVEL.token_bytes(384) == b""
    assert decode(BYTE_LEVEL, [384]) == ""


def test_chat_template_is_the_models_own(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(resolve_model(str(make_tiny_model("llama2", tmp_path))))
    tokens = tokenizer.apply_chat_template(MESSAGES)
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert decode(tokenizer, tokens, skip_special_tokens=False) == text
    assert tokenizer.eos_token_ids == (2,)
    shorter = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False)
    assert tokens[: len(shorter)] == shorter
    assert len(shorter) < len(tokens)


def test_template_that_refuses_gives_its_reason() -> None:
    with pytest.raises(InvalidRequest, match="unknown role pirate") as caught:
        BYTE_LEVEL.apply_chat_template([{"role": "pirate", "content": "arr"}])
    assert caught.value.param == "messages"


def test_model_without_template_says_so() -> None:
    tokenizer = HuggingFaceTokenizer(make_tiny_tokenizer(chat_template=None))
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.apply_chat_template(MESSAGES)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        BYTE_LEVEL.encode("a\ud83d")


def test_a_long_text_lets_other_threads_run_while_it_is_encoded() -> None:
    rounds, has_begun, is_over = 0, threading.Event(), threading.Event()

    def watch() -> None:
        nonlocal rounds
        while not is_over.is_set():
            has_begun.set()
            time.sleep(0.001)
            rounds += 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert has_begun.wait(10)
    before = rounds
    BYTE_LEVEL.encode("word " * 100_000)
    during = rounds - before
    is_over.set()
    watcher.join()
    assert during > 3  # held back, it gets one round in, or two


def test_model_without_tokenizer_takes_token_ids_only(tmp_path: Path) -> None:
    path = make_tiny_model("llama2", tmp_path, with_tokenizer=False)
    tokenizer = load_tokenizer(resolve_model(str(path)))
    assert isinstance(tokenizer, TokenIdsOnly)
    assert not tokenizer.has_text
    assert decode(tokenizer, [1, 2]) == ""
    assert tokenizer.token_text(17) == "token_id:17"
    assert tokenizer.token_bytes(17) == b""
    with pytest.raises(InvalidRequest, match="token ids"):
        tokenizer.encode("hello")
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.apply_chat_template(MESSAGES)


def test_decoder_that_does_more_than_bytes_and_spaces_is_refused() -> None:
    backend = Backend(models.BPE())
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModel, match="WordPiece"):
        HuggingFaceTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_gguf_tokenizer_gives_the_ids_of_the_folder_it_came_from(tmp_path: Path) -> None:
    path = make_tiny_model("qwen2", tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(path)
    written = write_gguf(tmp_path / "m.gguf", model, tokenizer=make_tiny_tokenizer())
    expected = load_tokenizer(resolve_model(str(path)))
    actual = load_tokenizer(resolve_model(str(written)))
    for text in ("The hawk circled 一句话", f"a{IM_END}b", " x  y\n"):
        assert actual.encode(text) == expected.encode(text)
    assert actual.apply_chat_template(MESSAGES) == expected.apply_chat_template(MESSAGES)
    assert actual.eos_token_ids == expected.eos_token_ids


def _gguf_with_split(folder: Path, split: str) -> Path:
    model = AutoModelForCausalLM.from_pretrained(make_tiny_model("qwen2", folder / "hf"))
    path = write_gguf(folder / "m.gguf", model, tokenizer=make_tiny_tokenizer())
    old, new = (len(s).to_bytes(8, "little") + s.encode() for s in ("default", split))
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def test_gguf_that_splits_text_in_an_unknown_way_is_refused(tmp_path: Path) -> None:
    path = _gguf_with_split(tmp_path, "mystery")
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.ggml\.pre = 'mystery'"):
        load_tokenizer(resolve_model(str(path)))


def test_gguf_of_llama3_takes_whole_words_before_merges(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(resolve_model(str(_gguf_with_split(tmp_path, "llama-bpe"))))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer._backend.model.ignore_merges
    assert decode(tokenizer, tokenizer.encode("a 12345 b")) == "a 12345 b"


def test_gguf_without_tokenizer_takes_token_ids_only(tmp_path: Path) -> None:
    path = make_tiny_model("qwen2", tmp_path / "hf")
    written = write_gguf(tmp_path / "m.gguf", AutoModelForCausalLM.from_pretrained(path))
    assert isinstance(load_tokenizer(resolve_model(str(written))), TokenIdsOnly)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from glinthawk.models.hf_tokenizer import load_tokenizer
from glinthawk.models.load import load_config
from glinthawk.models.source import model_digest, resolve_model
from glinthawk.models.tokenizer import decode
for model in sys.argv[1:]:
    files = resolve_model(model)
    config, digest, tokenizer = load_config(files), model_digest(files), load_tokenizer(files)
    tokens = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    print(config.num_layers, decode(tokenizer, tokens).count("hi"))
"""


def test_everything_but_weights_works_without_torch_and_without_noise(tmp_path: Path) -> None:
    path = make_tiny_model("qwen3", tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, "smollm2-135m", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "30 1\n4 1\n"
