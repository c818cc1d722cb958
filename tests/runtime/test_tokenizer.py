"""Text in and out, held against `transformers` on tokenizers built here."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, processors

from support import letters
from windlass_runtime.errors import CheckpointError, RequestError
from windlass_runtime.tokenizer import Tokenizer

MESSAGES = [{"role": "system", "content": "Be <b>kind</b>."}, {"role": "user", "content": "Grüße, 世界 🎉"}]


def write(folder: Path, config: dict[str, Any], *, adds_bos: bool = False, template: str | None = None) -> Path:
    core = letters.build_core()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", letters.BOS)])
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def build_byte_fallback() -> Tokenizer:
    """A tokenizer in the manner of Llama 2: words with their space in front, unknown characters as bytes."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for text in ("▁", "▁hi", "▁you", "a", "b"):
        vocabulary[text] = len(vocabulary)
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(core, {"bos_token": "<s>"})


@pytest.mark.parametrize("file_adds_bos", [True, False], ids=["file adds bos", "file adds nothing"])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="silent"),
        pytest.param({"add_bos_token": True}, id="add_bos true"),
        pytest.param({"add_bos_token": False}, id="add_bos false"),
        pytest.param({"add_bos_token": True, "add_eos_token": True}, id="both"),
        pytest.param({"add_eos_token": True}, id="add_eos"),
    ],
)
def test_special_tokens_are_added_as_transformers_adds_them(
    tmp_path: Path, config: dict[str, Any], file_adds_bos: bool
) -> None:
    folder = write(tmp_path, letters.build_config(**config), adds_bos=file_adds_bos)
    reference = transformers.AutoTokenizer.from_pretrained(folder)

    tokenizer = Tokenizer.load(folder)

    for text in ("", "hello", "Grüße, 世界 🎉", "a <s> in </s> text", "  spaces  "):
        assert tokenizer.encode(text) == reference(text)["input_ids"]
        plain = reference(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, add_special_tokens=False) == plain
        assert tokenizer.decode(plain) == reference.decode(plain, skip_special_tokens=True)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(letters.CHAT_TEMPLATE, id="plain"),
        pytest.param(
            "{% for m in messages %}\n    {% if loop.first %}\n{{ bos_token }}\n    {% endif %}\n"
            "[{{ m.role }}]{{ m.content | trim }}{% endfor %}",
            id="blocks are trimmed",
        ),
        pytest.param("{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}", id="tojson escapes no HTML"),
        pytest.param(
            "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
            "{{ m.content }}{% break %}{% endfor %}",
            id="loop controls",
        ),
        pytest.param(
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ eos_token }}",
            id="generation block",
        ),
        pytest.param(
            "{% set ns = namespace(found=false) %}{% for m in messages %}{% set ns.found = true %}{% endfor %}"
            "{{ ns.found }}"
            "{% if tools is not none %}tools{% endif %}{% if add_generation_prompt %}go{% endif %}",
            id="namespace and defaults",
        ),
    ],
)
@pytest.mark.parametrize("place", ["config", "named list", "file"])
def test_chats_are_rendered_as_transformers_renders_them(tmp_path: Path, template: str, place: str) -> None:
    config = letters.build_config(chat_template=template)
    if place == "named list":
        other = {"name": "tool_use", "template": "no"}
        config["chat_template"] = [other, {"name": "default", "template": template}]
    if place == "file":
        config["chat_template"] = "an older one"
    folder = write(tmp_path, config, template=template if place == "file" else None)
    reference = transformers.AutoTokenizer.from_pretrained(folder)

    tokenizer = Tokenizer.load(folder)

    for generation_prompt in (True, False):
        assert tokenizer.render_chat(MESSAGES, add_generation_prompt=generation_prompt) == (
            reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=generation_prompt)
        )
    assert tokenizer.encode(tokenizer.render_chat(MESSAGES), add_special_tokens=False) == list(
        reference.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    )


def test_a_model_without_a_chat_template_says_what_to_use_instead() -> None:
    tokenizer = letters.build_tokenizer(chat_template=None)

    with pytest.raises(RequestError, match="no chat template; send a plain prompt to /v1/completions"):
        tokenizer.render_chat(MESSAGES)


@given(st.text(max_size=40))
def test_pieces_join_up_to_the_whole_text_and_never_show_half_a_character(text: str) -> None:
    tokenizer = letters.build_tokenizer()
    decoder = tokenizer.decoder()

    pieces = [decoder.feed(token) for token in tokenizer.encode(text, add_special_tokens=False)]

    assert "".join(pieces) + decoder.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.text(st.sampled_from("ab hi you é世🎉"), max_size=20))
def test_byte_fallback_pieces_join_up_to_the_whole_text(text: str) -> None:
    tokenizer = build_byte_fallback()
    prompt = tokenizer.encode("a", add_special_tokens=False)
    decoder = tokenizer.decoder(prompt)
    tokens = [token for token in tokenizer.encode(text, add_special_tokens=False) if text]

    pieces = [decoder.feed(token) for token in tokens]

    # The tokenizer writes a space in front of every text; behind a prompt that space is real.
    assert "".join(pieces) + decoder.flush() == (f" {text}" if text else "")
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_cut_off_by_the_end_comes_out_as_a_replacement_character() -> None:
    tokenizer = letters.build_tokenizer()
    decoder = tokenizer.decoder()

    shown = [decoder.feed(letters.FIRST_BYTE + byte) for byte in "é世".encode()[:-1]]

    assert shown == ["", "é", "", ""]
    assert decoder.flush() == "\ufffd"


def test_bytes_that_never_become_a_character_are_shown_after_a_while() -> None:
    decoder = letters.build_tokenizer().decoder()

    shown = "".join(decoder.feed(letters.FIRST_BYTE + 0xFF) for _ in range(100))

    assert 60 <= len(shown) <= 100


@given(st.integers(0, 255))
def test_the_bytes_of_a_token_are_exact_even_where_they_are_no_character(byte: int) -> None:
    assert letters.build_tokenizer().token_bytes(letters.FIRST_BYTE + byte) == bytes([byte])
    assert build_byte_fallback().token_bytes(3 + byte) == bytes([byte])


def test_the_bytes_of_a_special_token_are_its_name() -> None:
    assert letters.build_tokenizer().token_bytes(letters.EOS) == b"</s>"


def test_half_a_surrogate_pair_is_the_clients_fault() -> None:
    with pytest.raises(RequestError, match="surrogate"):
        letters.build_tokenizer().encode("\ud800")


@pytest.mark.parametrize(
    ("name", "content", "finding"),
    [
        pytest.param("tokenizer.json", None, "expected a tokenizer file, found nothing", id="missing"),
        pytest.param("tokenizer.json", "{", "expected a tokenizer, found", id="broken"),
        pytest.param("tokenizer_config.json", "[]", "expected an object, found list", id="config of the wrong kind"),
        pytest.param("tokenizer_config.json", "{", "expected JSON", id="broken config"),
        pytest.param("chat_template.jinja", "{% if %}", "expected valid Jinja", id="broken template"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str | None, finding: str) -> None:
    folder = write(tmp_path, letters.build_config())
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)

    with pytest.raises(CheckpointError, match=finding):
        Tokenizer.load(folder)
