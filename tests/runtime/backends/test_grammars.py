import json

import pytest
import torch

from support import letters
from windlass_runtime.backends.grammar_text import Grammar, GrammarKind, bound_whitespace, choice_grammar
from windlass_runtime.backends.grammars import Constraint, GrammarCompiler
from windlass_runtime.backends.sampling import TokenSampler, sample
from windlass_runtime.backends.sampling_params import SamplingParams
from windlass_runtime.errors import RequestError

SCHEMA = '{"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}, "required": ["a"]}'


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(letters.build_core().to_str, letters.VOCABULARY, [letters.EOS])


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether the grammar lets `text` through, byte by byte, and may end after it."""
    for byte in text.encode():
        allowed = constraint.allowed()
        assert allowed is not None
        if not allowed[letters.FIRST_BYTE + byte]:
            return False
        constraint.accept(letters.FIRST_BYTE + byte)
    allowed = constraint.allowed()
    assert allowed is not None
    return bool(allowed[letters.EOS])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param('{"a":[1,2]}', True, id="compact"),
        pytest.param('{ "a" : [ 1 , 2 ] }', True, id="spaced"),
        pytest.param('{\n  "a": [\n    1\n  ]\n}', True, id="indented"),
        pytest.param('{  "a":[]}', False, id="two spaces"),
        pytest.param('{\n\n"a":[]}', False, id="two line ends"),
        pytest.param('{"a":["x"]}', False, id="against the schema"),
        pytest.param('{"a":[1]', False, id="unfinished"),
    ],
)
def test_whitespace_in_json_is_free_within_bounds(compiler: GrammarCompiler, text: str, expected: bool) -> None:
    schema = json.dumps(bound_whitespace(json.loads(SCHEMA)))

    assert accepts(compiler.compile(Grammar(GrammarKind.JSON_SCHEMA, schema, "f")), text) == expected


def test_each_fresh_constraint_starts_at_the_beginning(compiler: GrammarCompiler) -> None:
    start = compiler.compile(choice_grammar(["yes", "no"], "f"))

    assert accepts(start.fresh(), "yes")
    assert accepts(start.fresh(), "no")


def test_a_grammar_with_a_fault_names_its_field(compiler: GrammarCompiler) -> None:
    with pytest.raises(RequestError, match="guided_regex: expected a valid regex") as caught:
        compiler.compile(Grammar(GrammarKind.REGEX, "a(b", "guided_regex"))

    assert caught.value.parameter == "guided_regex"


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_no_bias_and_no_temperature_brings_a_forbidden_token_back(
    compiler: GrammarCompiler, temperature: float
) -> None:
    start = compiler.compile(Grammar(GrammarKind.REGEX, "[ab]", "f"))
    params = SamplingParams(
        temperature=temperature, seed=1, logit_bias=((letters.token_of("z"), 100.0),), constraint=start
    )
    sampler = TokenSampler(params, (), 0)
    logits = torch.zeros(1, letters.VOCABULARY)

    (first,) = sample(logits, [sampler])
    (second,) = sample(logits, [sampler])

    assert first is not None
    assert first.token_id in (letters.token_of("a"), letters.token_of("b"))
    assert second is not None
    assert second.token_id == letters.EOS
