import os
import signal

from uvit_jax.parallel.preemption import PreemptionNotice


def test_a_sigterm_is_noticed_at_the_next_step_and_ends_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionNotice() as preempted:
        assert not preempted(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preempted(2)
        assert preempted(3)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_notice_is_of_its_own_run():
    with PreemptionNotice() as first:
        os.kill(os.getpid(), signal.SIGTERM)
    with PreemptionNotice() as second:
        assert first(1)
        assert not second(1)
