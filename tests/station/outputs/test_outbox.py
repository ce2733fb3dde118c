"""Every row reaches its consumer at least once and in order, whatever fails; a consumer that takes none becomes a fault and holds nobody up."""

import dataclasses
import threading

import pytest

from snl_runtime.errors import ConfigError, DeliveryError, SinkError
from snl_runtime.station.outbox import Outbox, OutboxConfig, drain

FAST = OutboxConfig(first_retry_s=0.005, longest_retry_s=0.01)
WAIT_S = 20.0


@dataclasses.dataclass(frozen=True)
class Row:
    row: int
    camera: str
    record: dict


class MemoryStore:
    """The interface of the record store over a list; may refuse to read."""

    def __init__(self, count=0):
        self.guard = threading.Lock()
        self.rows = [self.row(number) for number in range(1, count + 1)]
        self.cursors = {}
        self.fails = False
        self.marks = []
        self.asked = []

    @staticmethod
    def row(number):
        return Row(number, "one", {"verdict": "PASS", "trigger_id": number})

    def add(self):
        with self.guard:
            self.rows.append(self.row(len(self.rows) + 1))

    def read_after(self, row, limit):
        if self.fails:
            raise SinkError("the disk is gone")
        self.asked.append(limit)
        with self.guard:
            return self.rows[row : row + limit]

    def delivered(self, consumer):
        return self.cursors.get(consumer, 0)

    def mark_delivered(self, consumer, row):
        self.marks.append(row)
        self.cursors[consumer] = row

    def backlog(self, consumer):
        with self.guard:
            return len(self.rows) - self.delivered(consumer)


class Peer:
    """A consumer that notes what arrives and fails as told; ``arrived`` wakes whoever waits for the last row."""

    name = "peer"

    def __init__(self, *, until, plan=()):
        self.until, self.plan = until, list(plan)
        self.got, self.calls, self.complete = [], [], threading.Event()
        self.blocked, self.release = threading.Event(), threading.Event()

    def connect(self):
        self.calls.append("connect")
        self._act("connect")

    def send(self, batch):
        self.calls.append("send")
        took = self._act("send")
        taken = batch if took is None else batch[:took]
        self.got += [one.row for one in taken]
        if self.got and self.got[-1] >= self.until:
            self.complete.set()
        if took is not None:
            raise DeliveryError(f"took {took}", acknowledged=took)

    def close(self):
        self.calls.append("close")

    def _act(self, call):
        if not self.plan or self.plan[0][0] != call:
            return None
        action = self.plan.pop(0)[1]
        if action == "hang":
            self.blocked.set()
            self.release.wait(WAIT_S)
            return None
        if isinstance(action, Exception):
            raise action
        return action


class Faults:
    def __init__(self):
        self.said, self.changed = [], threading.Condition()

    def __call__(self, reason):
        with self.changed:
            self.said.append(reason)
            self.changed.notify_all()

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.said) >= count, WAIT_S), self.said
            return self.said


def deliver(peer, store, config=FAST):
    faults = Faults()
    with Outbox(peer, store, on_fault=faults, config=config) as outbox:
        assert peer.complete.wait(WAIT_S)
    return outbox.counts, faults.said


def first_arrivals(rows):
    return list(dict.fromkeys(rows))


def test_every_row_arrives_once_and_in_order_from_a_peer_that_never_fails():
    peer, store = Peer(until=250), MemoryStore(250)
    counts, faults = deliver(peer, store)
    assert peer.got == list(range(1, 251))
    assert (store.cursors["peer"], counts.delivered, counts.failures, faults) == (250, 250, 0, [])


def test_batches_are_bounded():
    peer, store = Peer(until=25), MemoryStore(25)
    deliver(peer, store, dataclasses.replace(FAST, batch_rows=10))
    assert set(store.asked) == {10}


def test_new_rows_wake_the_outbox():
    store, peer = MemoryStore(), Peer(until=3)
    with Outbox(peer, store, on_fault=Faults(), config=FAST) as outbox:
        for _ in range(3):
            store.add()
            outbox.notify()
        assert peer.complete.wait(WAIT_S)
    assert peer.got == [1, 2, 3]


@pytest.mark.parametrize(
    "plan",
    [
        [("connect", SinkError("no route")), ("connect", OSError("refused"))],
        [("send", SinkError("gone"))],
        [("send", 3), ("send", ConnectionResetError("reset")), ("connect", SinkError("refused")), ("send", 1)],
    ],
)
def test_failures_are_retried_and_no_row_is_left_out(plan):
    peer, store = Peer(until=40, plan=plan), MemoryStore(40)
    counts, _ = deliver(peer, store)
    assert first_arrivals(peer.got) == list(range(1, 41))
    assert counts.failures == len(plan)
    assert store.marks == sorted(store.marks)


def test_after_a_failure_the_peer_is_closed_and_connected_anew():
    peer = Peer(until=5, plan=[("send", SinkError("gone"))])
    deliver(peer, MemoryStore(5))
    assert peer.calls[:5] == ["connect", "send", "close", "connect", "send"]
    assert peer.calls[-1] == "close"


def test_cursor_moves_only_past_what_was_acknowledged():
    peer, store = Peer(until=40, plan=[("send", 7)]), MemoryStore(40)
    deliver(peer, store)
    assert store.marks[0] == 7


def test_next_start_goes_on_after_the_last_acknowledged_row():
    store = MemoryStore(40)
    store.cursors["peer"] = 30
    peer = Peer(until=40)
    deliver(peer, store)
    assert peer.got == list(range(31, 41))


def test_backlog_past_its_limit_is_a_fault_until_it_is_gone():
    store, faults = MemoryStore(11), Faults()
    peer = Peer(until=11, plan=[("connect", "hang")])
    config = dataclasses.replace(FAST, max_backlog_rows=10, max_stall_s=0.2)
    with Outbox(peer, store, on_fault=faults, config=config) as outbox:
        assert "11 records wait for peer, more than 10" in faults.wait(1)[0]
        assert outbox.counts.fault
        peer.release.set()
        assert faults.wait(2)[1] is None
        assert outbox.counts.fault == ""


def test_peer_that_hangs_in_a_call_is_a_fault_after_the_stall_time():
    store, faults = MemoryStore(3), Faults()
    peer = Peer(until=3, plan=[("send", "hang")])
    with Outbox(peer, store, on_fault=faults, config=dataclasses.replace(FAST, max_stall_s=0.1)):
        assert peer.blocked.wait(WAIT_S)
        assert "peer has taken none of 3 records for 0.1 s" in faults.wait(1)[0]
        peer.release.set()
        assert faults.wait(2)[1] is None


def test_fault_names_the_last_error():
    store, faults = MemoryStore(3), Faults()
    peer = Peer(until=3, plan=[("connect", SinkError("broker 10.0.0.7 refuses: bad password"))] * 1000)
    with Outbox(peer, store, on_fault=faults, config=dataclasses.replace(FAST, max_stall_s=0.05)):
        assert "bad password" in faults.wait(1)[0]


def test_nothing_to_deliver_is_never_a_fault():
    store, faults, peer = MemoryStore(), Faults(), Peer(until=1)
    with Outbox(peer, store, on_fault=faults, config=dataclasses.replace(FAST, max_stall_s=0.02)) as outbox:
        assert not threading.Event().wait(0.3)  # fifteen times the stall time
        store.add()
        outbox.notify()
        assert peer.complete.wait(WAIT_S)
    assert faults.said == []


def test_store_that_cannot_be_read_is_tried_again():
    store, peer = MemoryStore(5), Peer(until=5)
    store.fails = True
    with Outbox(peer, store, on_fault=Faults(), config=FAST) as outbox:
        until = threading.Event()
        while outbox.counts.failures < 3:
            until.wait(0.002)
        store.fails = False
        assert peer.complete.wait(WAIT_S)


def test_bug_in_a_consumer_is_a_fault_and_not_silence(caplog):
    peer, faults = Peer(until=5, plan=[("send", KeyError("verdict"))]), Faults()
    with Outbox(peer, MemoryStore(5), on_fault=faults, config=dataclasses.replace(FAST, max_stall_s=0.1)):
        assert "deliveries to peer ended: 'verdict'" in faults.wait(1)[0]
    assert "deliveries to peer ended" in caplog.text


def test_one_outage_is_one_warning(caplog):
    peer = Peer(until=5, plan=[("connect", SinkError("refused"))] * 20)
    deliver(peer, MemoryStore(5))
    assert caplog.text.count("refused") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_rows": 0}, "outbox.batch_rows must be positive"),
        ({"longest_retry_s": 0.1}, "outbox.longest_retry_s must be at least"),
        ({"max_drain_s": -1.0}, "outbox.max_drain_s must be 0 or more"),
        ({"max_drain_s": float("nan")}, "outbox.max_drain_s must be 0 or more"),
    ],
)
def test_unusable_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        OutboxConfig(**changes)


def drain_of(peer, store, *, timeout_s=WAIT_S, stopped=None, config=FAST, when=lambda: None):
    """Deliver, and drain once ``when`` returned; return what the store says is left while the outbox is still open."""
    with Outbox(peer, store, on_fault=Faults(), config=config) as outbox:
        when()
        drain([outbox], timeout_s=timeout_s, stopped=stopped or threading.Event())
        left = store.backlog("peer")
        peer.release.set()
    return left


def test_drain_ends_when_the_peer_has_every_row():
    assert drain_of(Peer(until=250), store := MemoryStore(250)) == 0
    assert store.cursors["peer"] == 250


def test_drain_ends_where_nothing_can_be_delivered_yet():
    """A row that is not answered counts as backlog and is not read: nobody waits for it."""
    store = MemoryStore(3)
    store.read_after = lambda row, limit: []
    assert drain_of(Peer(until=1), store) == 3


def test_drain_does_not_sit_out_a_pause_between_two_tries():
    peer = Peer(until=9, plan=[("connect", SinkError("refused"))])
    slow = OutboxConfig(first_retry_s=1000.0, longest_retry_s=1000.0)
    store = MemoryStore(9)

    def paused():
        while peer.calls[-1:] != ["close"]:
            threading.Event().wait(0.002)

    assert drain_of(peer, store, config=slow, when=paused) == 0


def test_drain_gives_a_peer_up_that_fails_twice_and_takes_nothing():
    peer = Peer(until=9, plan=[("connect", SinkError("refused"))] * 1000)
    assert drain_of(peer, MemoryStore(9)) == 9


def test_drain_waits_for_a_peer_that_fails_again_and_again_but_takes_rows():
    plan = [("send", 2)] * 20
    assert drain_of(Peer(until=50, plan=plan), MemoryStore(50)) == 0


def test_drain_of_a_peer_that_hangs_ends_with_its_time():
    peer = Peer(until=3, plan=[("send", "hang")])
    assert drain_of(peer, MemoryStore(3), timeout_s=0.1, when=lambda: peer.blocked.wait(WAIT_S)) == 3


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "during"])
def test_signal_ends_a_drain(is_late):
    peer, stopped = Peer(until=3, plan=[("send", "hang")]), threading.Event()

    def blocked():
        assert peer.blocked.wait(WAIT_S)
        if is_late:
            threading.Timer(0.05, stopped.set).start()
        else:
            stopped.set()

    assert drain_of(peer, MemoryStore(3), timeout_s=1000.0, stopped=stopped, when=blocked) == 3


def test_drain_of_deliveries_that_ended_by_a_bug_ends():
    assert drain_of(Peer(until=5, plan=[("send", KeyError("verdict"))]), MemoryStore(5)) == 5
