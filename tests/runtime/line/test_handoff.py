"""A full handoff waits or drops, every item is accounted for, and closing it always wakes both threads."""

import threading
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snl_runtime.line.handoff import Handoff, HandoffCounts, OverflowPolicy


def in_thread(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_latest_keeps_the_newest_items():
    handoff = Handoff[int](2, OverflowPolicy.LATEST)
    for item in range(5):
        assert handoff.put(item)
    handoff.close()
    assert list(handoff) == [3, 4]
    assert handoff.counts() == HandoffCounts(offered=5, taken=2, dropped=3, waiting=0)


def test_drop_oldest_lets_several_items_wait_where_latest_keeps_one():
    assert OverflowPolicy.LATEST.default_capacity == 1
    assert OverflowPolicy.DROP_OLDEST.default_capacity == OverflowPolicy.EVERY.default_capacity == 4
    handoff = Handoff[int](OverflowPolicy.DROP_OLDEST.default_capacity, OverflowPolicy.DROP_OLDEST)
    for item in range(6):
        assert handoff.put(item)
    handoff.close()
    assert list(handoff) == [2, 3, 4, 5]


def test_every_delivers_every_item_in_order(wait_s):
    handoff = Handoff[int](1, OverflowPolicy.EVERY)

    def produce():
        for item in range(100):
            handoff.put(item)
        handoff.close()

    producer = in_thread(produce)
    assert list(handoff) == list(range(100))
    producer.join(wait_s)
    assert handoff.counts().dropped == 0


@pytest.mark.parametrize("end", [Handoff.close, Handoff.abort])
def test_an_item_refused_by_a_closed_handoff_counts_as_dropped(end, wait_s):
    handoff = Handoff[int](1, OverflowPolicy.EVERY)
    handoff.put(0)
    accepted = []
    producer = in_thread(lambda: accepted.append(handoff.put(1)))
    while handoff.counts().waiting < 2:  # the producer waits for room once both items count as waiting
        producer.join(0.001)
        assert producer.is_alive()
    end(handoff)
    producer.join(wait_s)
    assert accepted == [False]
    counts = handoff.counts()
    assert counts.offered == counts.taken + counts.dropped + counts.waiting == 2


def test_closing_ends_a_consumer_that_waits_for_an_item(wait_s):
    handoff = Handoff[int](1, OverflowPolicy.EVERY)
    received = []
    consumer = in_thread(lambda: received.extend(handoff))
    handoff.close()
    consumer.join(wait_s)
    assert not consumer.is_alive()
    assert received == []


def test_every_item_is_delivered_or_dropped_when_the_producer_races_the_consumer():
    handoff = Handoff[int](3, OverflowPolicy.LATEST)

    def produce():
        for item in range(20_000):
            handoff.put(item)
        handoff.close()

    in_thread(produce)
    delivered = list(handoff)
    assert delivered == sorted(delivered)
    assert len(delivered) + handoff.counts().dropped == 20_000


def test_capacity_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Handoff[int](0, OverflowPolicy.LATEST)


class HandoffAgainstModel(RuleBasedStateMachine):
    """One thread does what two would do, in any order in which nothing blocks; a deque with counters is the second derivation."""

    @initialize(capacity=st.integers(1, 4), policy=st.sampled_from(OverflowPolicy))
    def open(self, capacity, policy):
        self.lost = []
        self.handoff = Handoff[int](capacity, policy, on_drop=self.lost.append)
        self.items = iter(self.handoff)
        self.capacity, self.policy = capacity, policy
        self.model, self.closed = deque(), False
        self.offered = self.taken = self.dropped = 0

    @precondition(lambda self: self.closed or self.policy is not OverflowPolicy.EVERY or len(self.model) < self.capacity)
    @rule()
    def put(self):
        accepted = self.handoff.put(self.offered)
        assert accepted is not self.closed
        if self.closed:
            self.dropped += 1
        else:
            self.model.append(self.offered)
            if len(self.model) > self.capacity:
                self.model.popleft()
                self.dropped += 1
        self.offered += 1

    @precondition(lambda self: self.model or self.closed)
    @rule()
    def take(self):
        expected = self.model.popleft() if self.model else None
        assert next(self.items, None) == expected
        self.taken += expected is not None

    @rule()
    def close(self):
        self.handoff.close()
        self.closed = True

    @rule()
    def abort(self):
        self.handoff.abort()
        self.dropped += len(self.model)
        self.model.clear()
        self.closed = True

    @invariant()
    def counters_agree(self):
        if hasattr(self, "handoff"):
            counts = self.handoff.counts()
            assert counts == HandoffCounts(offered=self.offered, taken=self.taken, dropped=self.dropped, waiting=len(self.model))
            assert counts.offered == counts.taken + counts.dropped + counts.waiting
            assert len(set(self.lost)) == len(self.lost) == self.dropped, "each dropped item is told once"


TestHandoffAgainstModel = HandoffAgainstModel.TestCase
TestHandoffAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
