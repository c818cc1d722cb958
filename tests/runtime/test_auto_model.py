"""The Python API on a small random checkpoint, held against `transformers` where both do the same."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from support import letters
from support.checkpoints import write_checkpoint
from windlass_runtime import AutoModel, InferenceConfig
from windlass_runtime.errors import CheckpointError, PromptTooLong, RequestError
from windlass_runtime.launch import LoadedModel

PROMPT = [5, 9, 33, 40, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[AutoModel]:
    with AutoModel.from_pretrained(folder, config=InferenceConfig(precision="fp32")) as model:
        yield model


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_greedy_output_equals_that_of_transformers(model: AutoModel, reference: Any) -> None:
    expected = reference.generate(torch.tensor([PROMPT]), max_length=60, do_sample=False, pad_token_id=0)

    found = model.generate(torch.tensor([PROMPT]), max_length=60)

    assert found.tolist() == expected.tolist()


def test_prompts_generated_together_equal_those_generated_alone(model: AutoModel) -> None:
    prompts = [PROMPT, [3], list(range(4, 40)), [50] * 7]

    together = model.generate(prompts, max_new_tokens=20)

    assert together == [model.generate(prompt, max_new_tokens=20) for prompt in prompts]


@pytest.fixture(scope="module")
def fake() -> Iterator[AutoModel]:
    """Answers letters, and ends after an `x` prompt's third token."""

    def choose(tokens: list[int]) -> int:
        return letters.EOS if tokens[0] == letters.token_of("x") and len(tokens) == 4 else letters.letter_after(tokens)

    loaded = LoadedModel(letters.build_backend(choose=choose), letters.build_tokenizer())
    with AutoModel(loaded, InferenceConfig()) as model:
        yield model


LONG, SHORT = [letters.token_of("a")] * 2, [letters.token_of("x")] * 2


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(list, id="list"),
        pytest.param(np.array, id="numpy"),
        pytest.param(torch.tensor, id="torch"),
    ],
)
def test_the_answer_has_the_kind_and_dimensions_of_the_question(fake: AutoModel, build: Any) -> None:
    one, two = build(LONG), build([LONG, LONG])

    single, batch = fake.generate(one, max_length=6), fake.generate(two, max_length=6)

    assert type(single) is type(one)
    assert type(batch) is type(two)
    assert len(single) == 6
    assert [list(map(int, row)) for row in batch] == [list(map(int, single))] * 2
    assert getattr(batch, "dtype", None) == getattr(two, "dtype", None)


def test_a_row_that_ends_early_is_padded_in_a_tensor_and_short_in_a_list(fake: AutoModel) -> None:
    rows = fake.generate([LONG, SHORT], max_length=8)
    table = fake.generate(torch.tensor([LONG, SHORT]), max_length=8, pad_token_id=99)

    assert [len(row) for row in rows] == [8, 5]
    assert rows[1][-1] == letters.EOS
    assert table.tolist() == [rows[0], [*rows[1], 99, 99, 99]]


def test_the_default_padding_is_the_end_token(fake: AutoModel) -> None:
    table = fake.generate(np.array([LONG, SHORT]), max_length=8)

    assert table[1, 5:].tolist() == [letters.EOS] * 3


def test_max_length_counts_the_prompt_and_max_new_tokens_does_not(fake: AutoModel) -> None:
    assert len(fake.generate(LONG, max_length=7)) == 7
    assert len(fake.generate(LONG, max_new_tokens=7)) == 9
    assert len(fake.generate(LONG, 5, max_new_tokens=7)) == 9
    assert len(fake.generate(LONG)) == fake.max_sequence_tokens


def test_sampling_is_off_unless_asked_for_and_repeats_with_a_seed(fake: AutoModel) -> None:
    def draw(**options: Any) -> list[int]:
        return list(fake.generate(LONG, max_new_tokens=30, **options))

    assert draw(temperature=2.0) == draw()
    assert draw(do_sample=True, temperature=2.0, seed=4) == draw(do_sample=True, temperature=2.0, seed=4)
    assert draw(do_sample=True, temperature=2.0, seed=4) != draw(do_sample=True, temperature=2.0, seed=5)
    assert draw(do_sample=True, temperature=2.0, seed=4, top_k=1) == draw()


@pytest.mark.parametrize(
    ("input_ids", "options", "expected", "finding"),
    [
        pytest.param([], {}, RequestError, "expected token ids, found nothing", id="nothing"),
        pytest.param("text", {}, RequestError, "expected token ids, found str", id="text"),
        pytest.param([[1], []], {}, RequestError, "one or more integers", id="an empty row"),
        pytest.param([1.5], {}, RequestError, "one or more integers", id="floats"),
        pytest.param([[[1]]], {}, RequestError, "one or more integers", id="too deep"),
        pytest.param([999], {}, RequestError, "below 258, found 999", id="unknown token"),
        pytest.param([2, 3], {"max_length": 2}, RequestError, "more than the 2 prompt tokens", id="no room asked for"),
        pytest.param([2], {"max_length": 9999}, PromptTooLong, "256 tokens", id="more than the model holds"),
        pytest.param([2], {"do_sample": True, "temperature": -1}, RequestError, "temperature", id="temperature"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_reasons(
    fake: AutoModel, input_ids: Any, options: dict[str, Any], expected: type[Exception], finding: str
) -> None:
    with pytest.raises(expected, match=finding):
        fake.generate(input_ids, **options)


def test_one_bad_row_cancels_the_others_and_the_model_stays_usable(fake: AutoModel) -> None:
    with pytest.raises(RequestError):
        fake.generate([LONG, LONG, [999]])

    assert len(fake.generate(LONG, max_length=5)) == 5


@pytest.mark.parametrize("attempt", range(3))
def test_a_script_that_forgets_to_close_the_model_still_ends_cleanly(folder: Path, attempt: int) -> None:
    script = (
        "import sys; from windlass_runtime import AutoModel; "
        "AutoModel.from_pretrained(sys.argv[1]).generate([5, 9], max_length=16); "
        "model = AutoModel.from_pretrained(sys.argv[1]); model.generate([5, 9], max_length=16)"
    )

    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        AutoModel.from_pretrained(tmp_path / "nothing")


def test_the_shipped_model_runs_with_every_saving_at_once() -> None:
    """Sparse layers by the gate that travels with the model, 4-bit pages, prefixes found again: one answer."""
    path = Path(__file__).resolve().parents[2] / "examples" / "models" / "windlass-tiny"
    config = InferenceConfig(sparse_activation=True, kv_cache_quantization=4, enable_cache_reuse=True)
    prompt = [1, *range(50, 150)]

    with AutoModel.from_pretrained(path, config=config) as model:
        first, again = (model.generate(prompt, max_length=140) for _ in range(2))

    assert len(first) == 140
    assert again == first
