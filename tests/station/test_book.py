"""Every trigger gets exactly one answer, from the result or from the deadline, whatever the order of events and threads."""

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snl_runtime.station.book import BookCounts, Expired, TriggerBook


def test_a_result_in_time_is_answered_once():
    book = TriggerBook()
    book.open(1, deadline_ns=100)
    assert book.claim(1)
    assert not book.claim(1)
    assert book.answer(1, now_ns=99)
    assert not book.answer(1, now_ns=99)
    assert book.expire(1_000) == []


def test_a_trigger_without_result_is_cut_early_enough_to_record_its_error():
    book = TriggerBook(record_margin_ns=10)
    book.open(1, deadline_ns=100)
    assert book.next_ns() == 90
    assert book.expire(89) == []
    assert book.expire(90) == [Expired(trigger_id=1, needs_record=True, needs_answer=False)]
    assert not book.claim(1), "the late result is discarded"
    assert book.answer(1, now_ns=95), "the recorded ERROR is announced"
    assert book.counts == BookCounts(triggered=1, answered=1, missed=1, late_discarded=1, open=0)


def test_a_record_that_is_not_durable_by_the_deadline_leaves_the_answer_to_the_deadline():
    book = TriggerBook(record_margin_ns=10)
    book.open(1, deadline_ns=100)
    book.claim(1)
    assert book.next_ns() == 100
    assert book.expire(99) == []
    assert not book.answer(1, now_ns=100)
    assert book.expire(100) == [Expired(trigger_id=1, needs_record=False, needs_answer=True)]
    assert book.counts == BookCounts(triggered=1, answered=1, missed=1, late_discarded=1, open=0)


def test_a_deadline_seen_too_late_asks_for_record_and_answer_at_once():
    book = TriggerBook(record_margin_ns=10)
    book.open(1, deadline_ns=100)
    assert book.expire(500) == [Expired(trigger_id=1, needs_record=True, needs_answer=True)]


def test_trigger_ids_must_rise():
    book = TriggerBook()
    book.open(3, deadline_ns=1)
    with pytest.raises(ValueError, match="got 3 after 3"):
        book.open(3, deadline_ns=2)


def test_margin_below_zero_is_refused():
    with pytest.raises(ValueError, match="got -1"):
        TriggerBook(-1)


def test_two_threads_that_race_give_one_answer_per_trigger():
    book, count = TriggerBook(), 2_000
    answers = []  # list.append is atomic
    for trigger_id in range(1, count + 1):
        book.open(trigger_id, deadline_ns=trigger_id)
    begin = threading.Barrier(2)

    def deliver():
        begin.wait(10)
        for trigger_id in range(1, count + 1):
            if book.claim(trigger_id) and book.answer(trigger_id, now_ns=0):
                answers.append(trigger_id)

    def expire():
        begin.wait(10)
        for now_ns in range(count, 0, -7):
            answers.extend(expired.trigger_id for expired in book.expire(now_ns) if expired.needs_answer)

    threads = [threading.Thread(target=each, daemon=True) for each in (deliver, expire)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(answers) == list(range(1, count + 1))
    assert book.counts.answered == count


class BookAgainstLedger(RuleBasedStateMachine):
    """Any order of openings, claims, answers and looks at the clock, against a ledger of who did what when."""

    @initialize(margin_ns=st.sampled_from([0, 5, 30]))
    def build(self, margin_ns):
        self.book, self.margin_ns = TriggerBook(margin_ns), margin_ns
        self.now_ns, self.newest = 0, 0
        self.deadlines, self.claimants, self.answers = {}, {}, {}
        self.discarded = 0

    @rule(step=st.integers(0, 40))
    def time_passes(self, step):
        self.now_ns += step

    @rule(wait_ns=st.integers(1, 60))
    def open(self, wait_ns):
        self.newest += 1
        self.deadlines[self.newest] = self.now_ns + wait_ns
        self.book.open(self.newest, self.now_ns + wait_ns)

    @precondition(lambda self: self.newest)
    @rule(back=st.integers(0, 4))
    def claim(self, back):
        trigger_id = max(1, self.newest - back)
        may = trigger_id not in self.claimants
        assert self.book.claim(trigger_id) is may
        if may:
            self.claimants[trigger_id] = "result"
        else:
            self.discarded += 1

    @precondition(lambda self: self.newest)
    @rule(back=st.integers(0, 4))
    def answer(self, back):
        trigger_id = max(1, self.newest - back)
        may = trigger_id in self.claimants and trigger_id not in self.answers and self.now_ns < self.deadlines[trigger_id]
        assert self.book.answer(trigger_id, self.now_ns) is may
        if may:
            self.answers[trigger_id] = self.claimants[trigger_id]

    @rule()
    def expire(self):
        expected = []
        for trigger_id, deadline_ns in self.deadlines.items():
            if trigger_id in self.answers:
                continue
            is_cut = trigger_id not in self.claimants and self.now_ns + self.margin_ns >= deadline_ns
            is_over = self.now_ns >= deadline_ns
            if is_cut or is_over:
                expected.append(Expired(trigger_id=trigger_id, needs_record=is_cut, needs_answer=is_over))
            if is_cut:
                self.claimants[trigger_id] = "cut"
            if is_over:
                self.discarded += self.claimants[trigger_id] == "result"
                self.answers[trigger_id] = "deadline"
        assert self.book.expire(self.now_ns) == expected

    @invariant()
    def counters_agree(self):
        if not hasattr(self, "book"):
            return
        counts = self.book.counts
        assert counts.triggered == self.newest == counts.answered + counts.open
        assert counts.answered == len(self.answers)
        cut = {trigger_id for trigger_id, claimant in self.claimants.items() if claimant == "cut"}
        over = {trigger_id for trigger_id, answer in self.answers.items() if answer == "deadline"}
        assert counts.missed == len(cut | over)
        assert counts.late_discarded == self.discarded
        times = [d - (0 if t in self.claimants else self.margin_ns) for t, d in self.deadlines.items() if t not in self.answers]
        assert self.book.next_ns() == min(times, default=None)


TestBookAgainstLedger = BookAgainstLedger.TestCase
TestBookAgainstLedger.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
