"""Which worker computes which row, and how workers share the rows of one that is slow."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_runtime.jobs.batch.shards import Board, shard_of

IDS = [f"row-{number}" for number in range(4000)]


def build_board(shard: int = 0, shards: int = 2, rows: int = 40, window: int = 2, quiet_s: float = 30.0) -> Board:
    board = Board(IDS[:rows], shard, shards, window=window, quiet_s=quiet_s)
    board.begin(shard, 0.0)
    return board


def rows_of(shard: int, shards: int, rows: int = 40) -> list[int]:
    return [number for number in range(rows) if shard_of(IDS[number], shards) == shard]


def test_rows_are_spread_evenly() -> None:
    counts = Counter(shard_of(custom_id, 8) for custom_id in IDS)

    # 500 expected; five standard deviations of a binomial distribution are 105.
    assert set(counts) == set(range(8))
    assert all(abs(count - 500) < 105 for count in counts.values())


def test_one_shard_more_moves_rows_to_the_new_shard_only() -> None:
    moved = [(shard_of(one, 8), shard_of(one, 9)) for one in IDS if shard_of(one, 8) != shard_of(one, 9)]

    assert {after for _, after in moved} == {8}
    assert abs(len(moved) - len(IDS) / 9) < 100


def test_the_shard_of_a_row_is_the_same_in_every_version() -> None:
    assert [shard_of(custom_id, 10) for custom_id in ("a", "b", "request-1", "ä")] == [3, 2, 3, 2]


def test_a_worker_computes_its_own_rows_in_order_and_then_makes_room_for_shards_nobody_has_begun() -> None:
    board = build_board()
    taken = [board.take() for _ in rows_of(0, 2)]
    for number in rows_of(0, 2):
        board.settle(number, 1.0)
    board.look_for_stragglers(2.0)

    assert taken == rows_of(0, 2)
    assert board.take() is None
    assert board.may_leave
    assert not board.complete


def test_a_worker_that_is_done_takes_over_rows_of_a_slow_shard_but_not_those_under_way() -> None:
    board = build_board(window=3)
    board.begin(1, 0.0)
    for number in rows_of(0, 2):
        board.settle(number, 1.0)
    board.look_for_stragglers(2.0)

    taken = {board.take() for _ in IDS[:40]} - {None}

    assert taken == set(rows_of(1, 2)[3:])
    assert not board.may_leave


def test_rows_under_way_at_a_silent_worker_are_computed_too() -> None:
    board = build_board(window=3, quiet_s=30.0)
    board.begin(1, 0.0)
    for number in rows_of(0, 2):
        board.settle(number, 1.0)
    board.look_for_stragglers(30.0)

    assert {board.take() for _ in IDS[:40]} - {None} == set(rows_of(1, 2))


def test_two_helpers_begin_with_different_rows() -> None:
    def first_rows(shard: int) -> list[int | None]:
        board = build_board(shard, 3, rows=300)
        for number in [*rows_of(0, 3, 300), *rows_of(1, 3, 300)]:
            board.settle(number, 1.0)
        board.begin(2, 1.0)
        board.look_for_stragglers(2.0)
        return [board.take() for _ in range(10)]

    assert first_rows(0) != first_rows(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 60), st.integers(1, 4))
def test_workers_that_come_go_and_hang_in_any_order_finish_every_row(
    seed: int, shards: int, rows: int, window: int
) -> None:
    """Workers see each other's results late, some hang for ever; as long as one works on, all rows get done."""
    chance = random.Random(seed)
    boards = [build_board(shard, shards, rows, window, quiet_s=5.0) for shard in range(shards)]
    for board in boards:
        for shard in range(shards):
            board.begin(shard, 0.0)
    hung = set(chance.sample(range(shards), chance.randint(0, shards - 1)))
    written: list[int] = []
    running: list[list[int]] = [[] for _ in boards]
    for now_s in range(1, 2000):
        for index, board in enumerate(boards):
            while len(running[index]) < window and (number := board.take()) is not None:
                assert not board.is_done(number)
                assert number not in running[index]
                running[index].append(number)
            if index in hung:
                continue
            if running[index]:
                number = running[index].pop(chance.randrange(len(running[index])))
                board.settle(number, now_s)
                written.append(number)
            if chance.random() < 0.5:
                for number in written:
                    board.settle(number, now_s)
                board.look_for_stragglers(now_s)
        if set(written) == set(range(rows)):
            return
    pytest.fail(f"rows left: {set(range(rows)) - set(written)}")
