import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_runtime.scheduling.stop_strings import StopStrings


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    """What is shown after each piece, the flush included, and whether a stop was met."""
    matcher, shown = StopStrings(stops), []
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, matcher.flush()], False


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stopped"),
    [
        pytest.param((), ["a", "b"], ["a", "b", ""], False, id="without stops everything passes"),
        pytest.param(("END",), ["one EN", "D two"], ["one ", ""], True, id="across a border"),
        pytest.param(("END",), ["E", "N", "D"], ["", "", ""], True, id="one character at a time"),
        pytest.param(("END",), ["one E", "N", "x"], ["one ", "", "ENx", ""], False, id="a false start is shown later"),
        pytest.param(("END",), ["one EN"], ["one ", "EN"], False, id="a held tail comes out at the end"),
        pytest.param(("b", "abc"), ["xabc"], ["xa"], True, id="the stop string complete first wins"),
        pytest.param(("aab",), ["a", "a", "a", "b"], ["", "", "a", ""], True, id="overlapping starts"),
        pytest.param(("\n\n",), ["x\n", "\ny"], ["x", ""], True, id="blank line"),
    ],
)
def test_stop_strings_are_found_and_never_shown(
    stops: tuple[str, ...], pieces: list[str], shown: list[str], stopped: bool
) -> None:
    assert run(stops, pieces) == (shown, stopped)


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_the_cut_of_the_text_into_pieces_does_not_change_what_is_shown_before_the_first_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[start:end] for start, end in itertools.pairwise(borders)]

    shown, stopped = run(tuple(stops), pieces)

    joined = "".join(shown)
    assert joined == "".join(run(tuple(stops), list(text))[0])
    assert text.startswith(joined)
    assert not any(stop in joined for stop in stops)
    assert stopped == any(stop in text for stop in stops)
    assert stopped or joined == text
