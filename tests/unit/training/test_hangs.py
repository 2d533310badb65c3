"""Which worker hangs, by what the workers answer and when."""

from __future__ import annotations

import threading

from perennial.training.ray.hangs import (
    Listener,
    Sign,
    Silence,
    give_sign,
    note_collective,
    steps_watched,
)

LIMIT = 10.0


def _listener(begun: dict[int, int]) -> Listener:
    """Workers that were asked and answered at time 0."""
    listener = Listener(len(begun), LIMIT, 0.0)
    for rank, number in begun.items():
        listener.ask(rank, 0.0)
        listener.hear(rank, Sign(number), 0.0)
    return listener


def test_a_process_that_does_not_answer_hangs() -> None:
    listener = _listener({0: 5, 1: 5})
    listener.ask(0, 1.0)
    listener.ask(1, 1.0)
    listener.hear(0, Sign(6), 1.5)
    assert listener.silence(11.0) is None
    assert listener.silence(12.0) == Silence((1,), "has not answered for 11 s")
    listener.hear(1, Sign(6), 12.0)
    assert listener.silence(12.0) is None


def test_a_worker_that_the_others_wait_for_hangs() -> None:
    listener = _listener({0: 8, 1: 7, 2: 8})
    for second in range(1, 21):
        for rank, begun in enumerate((8, 7, 8)):
            listener.ask(rank, second)
            listener.hear(rank, Sign(begun), second)
    assert listener.silence(10.0) is None
    silence = listener.silence(20.0)
    assert silence is not None
    assert silence.ranks == (1,)
    assert silence.why == "has not gone on for 20 s, and the others wait for it"


def test_any_progress_is_a_sign() -> None:
    listener = _listener({0: 8, 1: 7})
    listener.hear(0, Sign(9), 9.0)
    assert listener.silence(15.0) is None
    assert listener.silence(19.5) is not None


def _hear_all(listener: Listener, signs: list[Sign], until: int) -> None:
    """Every worker answers alike once a second, from second 1 on."""
    for second in range(1, until + 1):
        for rank, sign in enumerate(signs):
            listener.ask(rank, second)
            listener.hear(rank, sign, second)


def test_workers_that_wait_for_the_store_or_compile_may_take_as_long_as_they_like() -> None:
    for signs in ([Sign(8), Sign(8)], [Sign(8), Sign(8, in_step=True)], [Sign(0, True)]):
        listener = _listener({rank: sign.begun for rank, sign in enumerate(signs)})
        _hear_all(listener, signs, 100)
        assert listener.silence(101.0) is None


def test_a_lone_worker_that_stays_in_a_step_hangs_and_is_named_with_its_place() -> None:
    listener = _listener({0: 8})
    _hear_all(listener, [Sign(8)], 30)
    for second in range(31, 41):
        listener.hear(0, Sign(8, True, "wait (threading.py:1)"), second)
        assert listener.silence(second) is None
    assert listener.silence(41.0) == Silence(
        (0,), "has not gone on for 11 s", "wait (threading.py:1)"
    )
    listener.hear(0, Sign(9, True), 41.0)
    assert listener.silence(42.0) is None


def test_workers_that_all_stay_in_a_step_hang_together() -> None:
    listener = _listener({0: 8, 1: 8})
    _hear_all(listener, [Sign(8, True), Sign(8, True)], 20)
    silence = listener.silence(20.0)
    assert silence is not None
    assert silence.ranks == (0, 1)


def test_a_sign_tells_the_training_thread_s_innermost_calls() -> None:
    signs: list[Sign] = []
    before = give_sign()
    assert (before.in_step, before.place) == (False, "")

    def watch() -> None:
        signs.append(give_sign())

    with steps_watched(lambda: True):
        note_collective()
        asked = threading.Thread(target=watch)
        asked.start()
        asked.join()
    (sign,) = signs
    assert (sign.begun, sign.in_step) == (before.begun + 1, True)
    assert f", called by {test_a_sign_tells_the_training_thread_s_innermost_calls.__name__} (" in (
        sign.place
    )
    assert give_sign().place == ""
