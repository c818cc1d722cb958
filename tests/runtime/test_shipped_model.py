"""The model in examples/models/windlass-tiny: what its card promises holds, here and in our own runtime."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).resolve().parents[2] / "examples" / "models" / "windlass-tiny"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
)
PROMPTS = (
    "The scheduler assigns a pod to",
    "A ResourceQuota limits",
    "When a node becomes unreachable, the controller",
    "To create an image, you must",
    "The number of replicas",
)
QUESTIONS = ("What is a volume?", "Tell me about security groups.", "Explain database transactions.")


@pytest.fixture(scope="module")
def evaluation():
    return json.loads((MODEL / "evaluation.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def windlass():
    from windlass_runtime import AutoModel, InferenceConfig

    with AutoModel.from_pretrained(MODEL, config=InferenceConfig(device="cpu", precision="FP32")) as model:
        yield model


@torch.inference_mode()
def greedy(reference, tokens, new_tokens):
    prompt = torch.tensor([tokens])
    out = reference.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False)
    return out[0].tolist()


def test_the_folder_is_complete_and_stays_below_eight_megabytes():
    sizes = {path.name: path.stat().st_size for path in MODEL.iterdir()}

    assert set(FILES) <= set(sizes)
    assert sum(sizes.values()) < 8_000_000


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_card_names_the_digest_of_the_shipped_file(name):
    assert hashlib.sha256((MODEL / name).read_bytes()).hexdigest() in (MODEL / "README.md").read_text("utf-8")


def test_the_card_states_the_measured_figures(evaluation):
    card = (MODEL / "README.md").read_text("utf-8")

    for figure in ("heldout_bits_per_byte", "excerpt_bits_per_byte"):
        assert f"**{evaluation[figure]}**" in card


@torch.inference_mode()
def test_held_out_bits_per_byte_is_what_the_card_says(reference, tokenizer, evaluation):
    text = (MODEL / "heldout.txt").read_text("utf-8")
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    stride, nats = reference.config.max_position_embeddings - 1, 0.0
    for start in range(0, len(tokens), stride):
        window = torch.tensor([[tokenizer.bos_token_id, *tokens[start : start + stride]]])
        log_probabilities = reference(window).logits[0, :-1].log_softmax(-1)
        nats -= log_probabilities.gather(-1, window[0, 1:, None]).sum().item()

    assert nats / math.log(2) / len(text.encode()) == pytest.approx(evaluation["excerpt_bits_per_byte"], rel=0.01)


def test_the_model_predicts_better_than_counting_and_compressing(evaluation):
    assert evaluation["heldout_bits_per_byte"] < min(evaluation["baselines_bits_per_byte"].values())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_our_runtime_continues_as_transformers_does(prompt, reference, tokenizer, windlass):
    tokens = tokenizer(prompt)["input_ids"]

    expected = greedy(reference, tokens, new_tokens=32)

    assert windlass.generate([tokens], max_length=len(tokens) + 32) == [expected]


def test_a_chat_turn_renders_to_the_format_it_was_trained_on(tokenizer):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a volume?"},
        {"role": "assistant", "content": "A disk."},
        {"role": "user", "content": " And a pod? "},
    ]

    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    assert rendered == (
        "<|bos|><|user|>Be brief. What is a volume?<|assistant|>A disk.<|end|><|user|>And a pod?<|assistant|>"
    )
    assert tokenizer(rendered, add_special_tokens=False)["input_ids"][:2] == [1, 3]


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_ends_by_itself(question, reference, tokenizer):
    turn = [{"role": "user", "content": question}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(rendered, add_special_tokens=False)["input_ids"]

    answer = greedy(reference, tokens, new_tokens=400)[len(tokens) :]

    assert len(answer) > 5
    assert answer[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(("precision", "most_lost"), [("INT8", 0.005), ("INT4", 0.01)])
def test_a_shipped_recipe_keeps_the_quality_that_it_states(precision, most_lost):
    """Bits per byte of the excerpt, as the served model gives them: the promise of docs/howto/calibrate.md."""
    from windlass_runtime.quant.recipe import read_recipe

    recipe = read_recipe(MODEL / "recipes" / precision.lower())
    exact, quantized = (heldout_nats(name) for name in ("FP32", precision))

    assert recipe.quality.perplexity_loss <= most_lost
    # The gate scores windows of 512 tokens, this test fewer of 256: the loss is the same within its own spread.
    assert math.exp(quantized - exact) - 1.0 <= most_lost + 0.003
    assert sum(path.stat().st_size for path in (MODEL / "recipes" / precision.lower()).iterdir()) < 4_000_000


@torch.inference_mode()
def heldout_nats(precision):
    """Mean nats per token of a part of heldout.txt, from the backend that a replica serves with."""
    from windlass_contract.launch_spec import Precision
    from windlass_runtime.backends.base import Row
    from windlass_runtime.backends.load import load_backend
    from windlass_runtime.model.ragged import lay_out
    from windlass_runtime.tokenizer import Tokenizer

    backend = load_backend(MODEL, precision=Precision(precision), max_running_requests=1, max_sequence_tokens=256)
    tokens = Tokenizer.load(MODEL).encode((MODEL / "heldout.txt").read_text("utf-8"), add_special_tokens=False)
    nats, count = 0.0, 0
    for start in range(0, 20 * 255, 255):
        window = [1, *tokens[start : start + 255]]
        step = lay_out([Row("r", tuple(window[:-1]), 0, (0, 1, 2, 3), True)], torch.device("cpu"))
        logits = backend._decoder.forward(step, backend._store, torch.arange(255)).double().log_softmax(-1)
        nats -= logits.gather(1, torch.tensor(window[1:])[:, None]).sum().item()
        count += len(window) - 1
    return nats / count


def test_the_python_interface_serves_the_shipped_recipe(tokenizer):
    from windlass_runtime import AutoModel, InferenceConfig

    prompt = tokenizer(PROMPTS[0])["input_ids"]
    with AutoModel.from_pretrained(MODEL, config=InferenceConfig(precision="int8")) as model:
        output = model.generate(prompt, max_new_tokens=24)

    assert tokenizer.decode(output).startswith("<|bos|>The scheduler assigns a pod to the pod's scheduler")
