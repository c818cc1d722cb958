"""Measure a checkpoint with `transformers` in float32: `python evaluate.py examples/models/windlass-tiny --text FILE`.

Bits per byte: the text's tokens are cut into windows of context - 1, each window starts with the begin token and is
scored alone; the bits of all text tokens are added and divided by the text's UTF-8 bytes. Prints JSON.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = (
    "The scheduler assigns a pod to",
    "A ResourceQuota limits",
    "When a node becomes unreachable, the controller",
    "To create an image, you must",
    "The number of replicas",
)
QUESTIONS = ("What is a volume?", "Tell me about security groups.", "Explain database transactions.")


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.inference_mode()
def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    stride, nats = model.config.max_position_embeddings - 1, 0.0
    for start in range(0, len(tokens), stride):
        window = torch.tensor([[tokenizer.bos_token_id, *tokens[start : start + stride]]])
        logits = model(window[:, :-1]).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    return nats / math.log(2) / len(text.encode())


@torch.inference_mode()
def continue_greedily(model: PreTrainedModel, tokens: list[int], new_tokens: int) -> list[int]:
    """The greedy continuation, without the prompt, up to and without the end token."""
    prompt = torch.tensor([tokens])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False)
    found = out[0, len(tokens) :].tolist()
    end = model.generation_config.eos_token_id
    return found[: found.index(end)] if end in found else found


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, str]]:
    """Greedy continuations of fixed prompts and answers to fixed questions, unedited."""
    texts, answers = {}, {}
    for prompt in PROMPTS:
        texts[prompt] = tokenizer.decode(continue_greedily(model, tokenizer(prompt)["input_ids"], 48))
    for question in QUESTIONS:
        turn = [{"role": "user", "content": question}]
        rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        answers[question] = tokenizer.decode(continue_greedily(model, tokens, 200))
    return {"continuations": texts, "answers": answers}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, help="default: heldout.txt beside the model")
    arguments = parser.parse_args()
    path: Path = arguments.text or arguments.model / "heldout.txt"
    model, tokenizer = load(arguments.model)
    text = path.read_text("utf-8")
    report = {"bytes": len(text.encode()), "bits_per_byte": round(bits_per_byte(model, tokenizer, text), 4)}
    sys.stdout.write(json.dumps(report | sample(model, tokenizer), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
