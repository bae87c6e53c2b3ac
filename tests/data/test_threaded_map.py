import concurrent.futures
import threading
import time

import pytest

from uvit_jax.data.threaded_map import threaded_map


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        yield pool


def test_results_come_in_order_though_the_work_does_not(pool):
    def work(i):
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    assert list(threaded_map(pool, work, range(20), 6)) == [i * i for i in range(20)]
    assert list(threaded_map(pool, work, [], 6)) == []
    assert list(threaded_map(pool, work, range(3), 50)) == [0, 1, 4]


def test_no_more_than_the_depth_is_under_way(pool):
    started = []
    results = threaded_map(pool, started.append, range(100), 5)
    assert started == []
    next(results)
    assert len(started) <= 6
    for taken in range(2, 20):
        next(results)
        assert len(started) <= taken + 5


def test_an_error_is_raised_in_its_turn_and_the_rest_is_given_up(pool):
    started, go_on = [], threading.Event()

    def work(i):
        started.append(i)
        if i == 3:
            raise KeyError("three")
        if i > 3:
            go_on.wait(5)
        return i

    results, found = threaded_map(pool, work, range(100), 20), []
    with pytest.raises(KeyError, match="three"):
        found.extend(results)
    go_on.set()
    pool.shutdown()
    assert found == [0, 1, 2]
    assert len(started) < 20


def test_a_closed_consumer_stops_the_work(pool):
    started = []
    results = threaded_map(pool, started.append, range(1000), 8)
    next(results)
    results.close()
    pool.shutdown()
    assert len(started) <= 9
