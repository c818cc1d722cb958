"""A moment as one token: four characters that a client on the same machine can compare with its own clock.

The unit is 10 microseconds of the machine's monotonic clock; the text repeats after about 168 seconds.
"""

from __future__ import annotations

from typing import Final

UNIT_S: Final = 1e-5
_DIGITS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_VALUES: Final = {digit: value for value, digit in enumerate(_DIGITS)}
_ROUND: Final = 64**4


def clock_text(now_s: float) -> str:
    """Four characters, most significant first."""
    units = int(now_s / UNIT_S) % _ROUND
    return "".join(_DIGITS[units >> shift & 63] for shift in (18, 12, 6, 0))


def age_s(text: str, now_s: float) -> float:
    """Seconds from the moment in `text` until `now_s`; right for ages below half a round. Raises KeyError."""
    units = 0
    for character in text:
        units = units * 64 + _VALUES[character]
    age = (int(now_s / UNIT_S) - units) % _ROUND
    return (age if age < _ROUND // 2 else age - _ROUND) * UNIT_S
