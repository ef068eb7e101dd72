from proof_cases import labelled_task, right

from limbeck.proof import timing


def test_a_policy_is_called_one_row_at_a_time_with_its_memory():
    task = labelled_task()
    policy = right(task)
    found = timing.latency(policy)
    assert 0 < found.p50_seconds <= found.p99_seconds
    assert timing.FEWEST_CALLS <= found.calls <= timing.CALLS
    assert policy.calls > found.calls  # the first call and the warm-up are not counted


def test_a_bare_callable():
    calls = []
    found = timing.latency_of(lambda: calls.append(1), calls=50)
    assert found.calls == 50
    assert 50 < len(calls) <= 50 + timing.WARM_UP_CALLS


def test_something_slow_is_called_less_often(monkeypatch):
    monkeypatch.setattr(timing, "MOST_NANOSECONDS", 0)
    assert timing.latency_of(lambda: None).calls == timing.FEWEST_CALLS
