"""Which worker hangs, by what the workers answer and when."""

from __future__ import annotations

from perennial.training.ray.hangs import Listener, Silence

LIMIT = 10.0


def _listener(begun: dict[int, int]) -> Listener:
    """Workers that were asked and answered at time 0."""
    listener = Listener(len(begun), LIMIT, 0.0)
    for rank, number in begun.items():
        listener.ask(rank, 0.0)
        listener.hear(rank, number, 0.0)
    return listener


def test_a_process_that_does_not_answer_hangs() -> None:
    listener = _listener({0: 5, 1: 5})
    listener.ask(0, 1.0)
    listener.ask(1, 1.0)
    listener.hear(0, 6, 1.5)
    assert listener.silence(11.0) is None
    assert listener.silence(12.0) == Silence((1,), "has not answered for 11 s")
    listener.hear(1, 6, 12.0)
    assert listener.silence(12.0) is None


def test_a_worker_that_the_others_wait_for_hangs() -> None:
    listener = _listener({0: 8, 1: 7, 2: 8})
    for second in range(1, 21):
        for rank, begun in enumerate((8, 7, 8)):
            listener.ask(rank, second)
            listener.hear(rank, begun, second)
    assert listener.silence(10.0) is None
    silence = listener.silence(20.0)
    assert silence is not None
    assert silence.ranks == (1,)
    assert silence.why == "has not gone on for 20 s, and the others wait for it"


def test_any_progress_is_a_sign() -> None:
    listener = _listener({0: 8, 1: 7})
    listener.hear(0, 9, 9.0)
    assert listener.silence(15.0) is None
    assert listener.silence(19.5) is not None


def test_workers_at_the_same_collective_compute_as_long_as_they_like() -> None:
    listener = _listener({0: 8, 1: 8})
    assert listener.silence(1e6) is None
    assert _listener({0: 0}).silence(1e6) is None
