"""The whole path on a real backend: a small random checkpoint, loaded from disk and asked by the official client."""

import asyncio
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from support import letters
from support.checkpoints import write_checkpoint, write_json
from support.openai_server import MODEL, build_spec, listening
from windlass_contract import endpoints
from windlass_contract.launch_spec import CacheReuse
from windlass_runtime import launch
from windlass_runtime.auto_model import AutoModel
from windlass_runtime.settings import InferenceConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), vocab_size=letters.VOCABULARY, eos_token_id=1)
    letters.build_core().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", letters.build_config())
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    spec = build_spec(model_uri=folder.as_uri(), step_tokens=32, max_running_requests=6)
    with listening(launch.load_model, spec) as events:
        address = str(events.get(timeout=30)["url"])
        assert events.get(timeout=30)["event"] == "ready"
        yield f"{address}/v1"


async def test_concurrent_clients_get_the_tokens_that_generate_gives_each_alone(folder: Path, url: str) -> None:
    prompts = [list(range(2, 5 + 4 * number)) for number in range(12)]
    tokenizer = letters.build_tokenizer()
    with AutoModel.from_pretrained(folder, config=InferenceConfig()) as model:
        alone = [model.generate(prompt, max_new_tokens=20)[len(prompt) :] for prompt in prompts]

    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0, timeout=30) as client:
        replies = await asyncio.gather(
            *(client.completions.create(model=MODEL, prompt=prompt, max_tokens=20, temperature=0) for prompt in prompts)
        )

    decoded = []
    for prompt, tokens in zip(prompts, alone, strict=True):
        decoder = tokenizer.decoder(prompt)
        shown = [token for token in tokens if token != letters.EOS]
        decoded.append("".join(decoder.feed(token) for token in shown) + decoder.flush())
    assert [reply.choices[0].text for reply in replies] == decoded


def test_a_chat_streams_and_reports_what_it_used(url: str) -> None:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=30) as client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=10,
                seed=1,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
        )

    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 10


def test_a_prompt_sent_again_is_found_in_4_bit_pages_and_answered_alike(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, vocab_size=letters.VOCABULARY, eos_token_id=1, head_dim=16)
    letters.build_core().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", letters.build_config())
    spec = build_spec(model_uri=folder.as_uri(), cache_bits=4, cache_reuse=CacheReuse.PREFIX, max_running_requests=2)
    prompt = [2 + number % 40 for number in range(150)]

    with listening(launch.load_model, spec) as events:
        address = str(events.get(timeout=30)["url"])
        assert events.get(timeout=30)["event"] == "ready"
        with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=30) as client:
            first, again = (
                client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0) for _ in range(2)
            )
        with urllib.request.urlopen(f"{address}{endpoints.METRICS_PATH}") as reply:
            metrics = reply.read().decode()

    assert again.choices[0].text == first.choices[0].text
    assert [reply.usage.prompt_tokens_details.cached_tokens for reply in (first, again)] == [0, 128]
    assert "windlass_cached_tokens_total" in metrics
    assert "} 128.0" in metrics
    config = InferenceConfig(kv_cache_quantization=4, enable_cache_reuse=True)
    with AutoModel.from_pretrained(folder, config=config) as model:
        once, twice = (model.generate(prompt, max_new_tokens=8)[len(prompt) :] for _ in range(2))
    assert once == twice
    shown = [token for token in once if token != letters.EOS]
    decoder = letters.build_tokenizer().decoder(prompt)
    assert "".join(decoder.feed(token) for token in shown) + decoder.flush() == first.choices[0].text
