"""Where the figures of a simulated replica come from, and how wrong ones are refused."""

from pathlib import Path
from typing import Any

import pytest

from windlass_runtime.simulate.profile import NAMED, Answer, Profile, ProfileError, build_profile, find_profile


@pytest.mark.parametrize(
    ("prompt_tokens", "decoding", "expected_s"),
    [
        pytest.param(0, 1, 0.011, id="one sequence decodes"),
        pytest.param(0, 64, 0.074, id="a larger batch is slower per token"),
        pytest.param(500, 0, 0.510, id="a prompt chunk"),
        pytest.param(500, 64, 0.574, id="a prompt chunk delays those who decode"),
    ],
)
def test_a_step_costs_its_weights_its_prompts_and_its_sequences(
    prompt_tokens: int, decoding: int, expected_s: float
) -> None:
    profile = Profile(step_s=0.010, per_sequence_s=0.001, prefill_tokens_per_s=1000)

    assert profile.step_seconds(prompt_tokens, decoding) == pytest.approx(expected_s)


@pytest.mark.parametrize("name", NAMED)
def test_what_is_shown_of_a_named_profile_can_be_read_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(NAMED[name].to_json())

    assert find_profile(str(path)) == NAMED[name] == find_profile(name)


def test_a_yaml_file_overrides_the_defaults_and_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "slow.yaml"
    path.write_text("step_s: 0.5  # assumption\njitter: 0.1\nanswer: clock\n")

    profile = build_profile(find_profile(str(path)), {"jitter": 0.2}, "options")

    assert profile == Profile(step_s=0.5, jitter=0.2, answer=Answer.CLOCK)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        pytest.param("step_s: fast", "step_s: input should be a valid number", id="no number"),
        pytest.param("jitter: 1.5", "jitter: input should be less than or equal to 1, found 1.5", id="out of range"),
        pytest.param("step_s: .nan", "step_s: ", id="NaN"),
        pytest.param("kv_pages: 0", "kv_pages: input should be greater than or equal to 1", id="no pages"),
        pytest.param("answer: songs", "answer: input should be 'words' or 'clock'", id="unknown word"),
        pytest.param("pages: 3", "pages: unknown key; expected one of prefill_tokens_per_s", id="unknown key"),
        pytest.param("- 1", "expected an object of key and value, found list", id="a list"),
        pytest.param("1: 2", "expected an object", id="a key that is no name"),
        pytest.param("a: [", "expected YAML", id="no YAML"),
    ],
)
def test_a_bad_file_is_refused_with_file_key_and_finding(text: str, finding: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)

    with pytest.raises(ProfileError) as caught:
        find_profile(str(path))

    assert str(caught.value).startswith(str(path))
    assert finding in str(caught.value)


@pytest.mark.parametrize("changes", [{"prefill_tokens_per_s": 0}, {"prefill_tokens_per_s": -1}, {"load_s": -1}])
def test_times_and_rates_below_their_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProfileError, match="options: "):
        build_profile(Profile(), changes, "options")
