"""Plays the steps of a history on a stack and on the model, and compares them where all is at rest."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from core.errors import GyreError
from tests.faults.histories.model import Model
from tests.faults.histories.steps import MOST_PAID, PERSONS, RELAXED
from tests.support.tools.small_disk import fill

ACCEPTED = 202
UNKNOWN = {0, 503}
"""Answers after which an event may have been taken or not: it is sent again."""
LONGEST = 120.0
"""Seconds after which something that has to come to rest is taken to be stuck."""
PAUSE = 0.1
ALLOWED_CLOCK = 60
"""Seconds that a clock may be ahead."""


@dataclass
class FindingError(Exception):
    """What a stack did otherwise than the model.

    Attributes:
        kind: Word for it, the same when the history is played again.
        text: What was expected and what was found.

    """

    kind: str
    text: str

    def __str__(self):
        return f"{self.kind}: {self.text}"


@dataclass
class Play:
    """A history under way.

    Attributes:
        stack: The stack, of which the history has a range of numbers for itself.
        say: Called with a line after each step.
        faults: How often each kind of fault was made.
        ingest_seconds: Time that the last ingest took.
        forget_seconds: Time that the last forgetting took.

    """

    stack: object
    say: Callable[[str], None]
    faults: Counter = field(default_factory=Counter)
    model: Model = field(default_factory=Model)
    source_rows: list = field(default_factory=list)
    ingest_seconds: float = 2.0
    forget_seconds: float = 3.0

    def play(self, steps):
        """Play the steps.

        Raises:
            FindingError: The stack did otherwise than the model.

        """
        for step in steps:
            start = time.monotonic()
            try:
                getattr(self, step.do.lower().replace(" ", "_"))(step)
            except TimeoutError as exc:
                raise FindingError("stuck", str(exc)) from exc
            finally:
                self.say(f"  {time.monotonic() - start:5.1f} s {step}")

    # Operations

    def events(self, step):
        self._send_each(step.events)

    def request(self, step):
        self._learn(self._send(step.events))

    def deliver(self, step):
        self._has(step.rows)
        self._ingest(step.words)

    def deliver_while_events_come(self, step):
        self._has(step.rows)
        command = self._start_reading(step.words)
        if not command.is_alive:
            self._end_ingest(command)
            self._send_each(step.events)
            return
        self.faults["an ingest stands while events come"] += 1
        with stopped(command.process):
            answers = [self._send([row]) for row in step.events]
        self._end_ingest(command)
        for answer in answers:
            self._learn(answer)

    def deliver_twice_at_once(self, step):
        self._has(step.rows)
        commands = [
            self.stack.run("ingest", "visits", *words) for words in ([], step.words)
        ]
        self.faults["two ingests at once"] += 1
        for command in commands:
            self._end_ingest(command)
        self._send_each(step.events)

    def the_source_wins(self, step):
        self._rest()
        self._has(step.rows)
        command = self.stack.run("ingest", "visits", "--source-wins")
        self._end_ingest(command)
        self.model.source_wins(self.source_rows)
        self._send_each(step.events)

    def materialise(self, _step):
        self._rest()
        until = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
        done = self.stack.feast("materialize-incremental", until)
        if done.returncode:
            raise FindingError("command", done.stderr[-2000:])

    def kill_the_ingest(self, step):
        self._has(step.rows)
        command = self.stack.run("ingest", "visits", *step.words)
        time.sleep(step.share * self.ingest_seconds)
        is_killed = command.kill()
        self.faults["an ingest is killed"] += is_killed
        if is_killed:
            self.model.delivers(self.source_rows, is_sure=False)
        else:
            self._end_ingest(command)
        self._send_each(step.events)

    def stop_the_ingest(self, step):
        self._has(step.rows)
        command = self.stack.run("ingest", "visits", *step.words)
        time.sleep(step.share * self.ingest_seconds)
        if command.is_alive:
            self.faults["an ingest stands"] += 1
            with stopped(command.process):
                time.sleep(1)
        self._end_ingest(command)
        self._send_each(step.events)

    def deliver_by_another_clock(self, step):
        self._has(step.rows)
        command = self.stack.run("ingest", "visits", *step.words, clock=step.number)
        self.faults["an ingest with another clock"] += 1
        if step.number <= ALLOWED_CLOCK:
            self._end_ingest(command)
        elif command.wait() == 0 or "ahead" not in command.text:
            raise FindingError(
                "clock", f"an ingest {step.number} s ahead: {command.text}"
            )
        self._send_each(step.events)

    def the_consumer_is_away(self, step):
        self._end_consumer()
        self._send_each(step.events)
        if step.rows:
            self._has(step.rows)
            self._ingest(step.words)
        self.stack.start_consumer()

    def kill_the_consumer(self, step):
        self._send_each(step.events)
        time.sleep(step.seconds / 3)
        self.faults["the consumer is killed"] += self.stack.consumer.kill()
        self.stack.start_consumer()

    def stop_the_consumer(self, step):
        self.faults["the consumer stands"] += 1
        with stopped(self.stack.consumer.process):
            self._send_each(step.events)
            time.sleep(step.seconds)

    def consume_by_another_clock(self, step):
        self._end_consumer()
        self._send_each(step.events)
        before = self.stack.rows()
        self.stack.start_consumer(clock=step.number)
        self.faults["a consumer with another clock"] += 1
        if step.number <= ALLOWED_CLOCK:
            self._rest()
        else:
            consumer = self.stack.consumer
            self._wait(
                "a consumer says that its clock is wrong",
                lambda: "ahead" in consumer.text,
            )
            time.sleep(step.seconds)
            if self.stack.rows() != before:
                raise FindingError(
                    "clock", f"a consumer {step.number} s ahead has written"
                )
        self._end_consumer()
        self.stack.start_consumer()

    def kill_redis(self, step):
        half = len(step.events) // 2
        self._send_each(step.events[:half])
        self.faults["Redis is killed"] += self.stack.kill_redis()
        self.stack.start_redis()
        self._send_each(step.events[half:])
        self._wait_for_redis()

    def stop_redis(self, step):
        self.faults["Redis stands"] += 1
        process = self.stack.redis_process
        with stopped(process):
            timer = threading.Timer(0.5 + step.seconds, go_on, [process])
            timer.start()
            self._send_each(step.events)
            timer.join()

    def fill_the_disk(self, step, *, is_killed=False):
        self._has(step.rows)
        filler = fill(self.stack.disk)
        self.faults["the disk is full"] += 1
        try:
            for row in step.events:
                self._learn(self._send([row], is_patient=False))
            command = self.stack.run("ingest", "visits", *step.words)
            is_done = command.wait() == 0
            self.model.delivers(self.source_rows, is_sure=is_done)
            if is_killed:
                self.faults["Redis is killed on a full disk"] += self.stack.kill_redis()
        finally:
            filler.unlink()
        if is_killed:
            self.stack.start_redis()
        self._wait_for_redis()

    def fill_the_disk_and_kill_redis(self, step):
        self.fill_the_disk(step, is_killed=True)

    def release(self, step):
        self._send_each(step.events)
        self.settle(step)
        self._end_consumer()
        self.stack.allow(RELAXED)
        command = self.stack.run("quarantine", "release", "--dataset", "visits")
        code = command.wait()
        self.stack.allow(MOST_PAID)
        if code != 0:
            raise FindingError("command", command.text)
        self.model.releases()
        self._compare_tables()
        self.stack.start_consumer()

    def forget(self, step):
        self._send_each(step.events)
        self._rest()
        words = ["forget", "visits", "--person", str(self.stack.base + step.number)]
        if step.share:
            command = self.stack.run(*words)
            time.sleep(step.share * self.forget_seconds)
            self.faults["a forgetting is killed"] += command.kill()
        start = time.monotonic()
        command = self.stack.run(*words)
        if command.wait() != 0:
            raise FindingError("command", command.text)
        self.forget_seconds = time.monotonic() - start
        self.model.forgets(step.number)

    def kill_the_forgetting(self, step):
        self.forget(step)

    def settle(self, _step):
        """Have everything come to rest, and compare."""
        self._rest()
        self._compare_tables()
        self._ingest([])
        self._rest()
        self._compare_tables()
        online = self.stack.online()
        totals = self.model.totals(self.stack.rows())
        for person in PERSONS:
            expected = totals.get(person, (0, 0.0))
            if online[person] != expected:
                text = f"person {person}: expected {expected}, found {online[person]}"
                raise FindingError("online", text)

    # Their parts

    def _send(self, rows, *, is_patient=True):
        """Send events in one request, again until they are taken; return the rows of each try."""
        tries = []
        end = time.monotonic() + LONGEST
        while True:
            status = self.stack.post(rows)
            tries.append((rows, status == ACCEPTED))
            if status == ACCEPTED or (not is_patient and status in UNKNOWN):
                return tries
            if status not in UNKNOWN:
                raise FindingError("answer", f"events are answered {status}")
            if time.monotonic() > end:
                raise FindingError("stuck", f"events are not taken for {LONGEST:.0f} s")
            time.sleep(PAUSE)

    def _learn(self, tries):
        for rows, is_sure in tries:
            self.model.sends(rows, is_sure=is_sure)

    def _send_each(self, rows):
        for row in rows:
            self._learn(self._send([row]))

    def _has(self, rows):
        self.source_rows = rows
        self.stack.deliver_file(rows)

    def _start_reading(self, words):
        """Start an ingest; return it once its reading has begun, or it has ended."""
        scratch = self.stack.scratch()
        if scratch.exists():  # a killed one left it
            scratch.rename(scratch.with_name(f"left-{time.monotonic_ns()}"))
        command = self.stack.run("ingest", "visits", *words)
        while command.is_alive and not scratch.exists():
            time.sleep(0.002)
        return command

    def _ingest(self, words):
        start = time.monotonic()
        self._end_ingest(self.stack.run("ingest", "visits", *words))
        self.ingest_seconds = time.monotonic() - start

    def _end_ingest(self, command):
        """Wait for an ingest, which has to succeed."""
        if command.wait() != 0:
            raise FindingError("command", command.text)
        self.model.delivers(self.source_rows)

    def _end_consumer(self):
        if not self.stack.end_consumer():
            raise FindingError(
                "stuck", f"the consumer does not end: {self._consumer_text()}"
            )

    def _consumer_text(self):
        return self.stack.consumer.text[-2000:]

    def _wait(self, what, is_so):
        end = time.monotonic() + LONGEST
        while not is_so():
            if time.monotonic() > end:
                text = f"not within {LONGEST:.0f} s: {what}"
                raise FindingError(
                    "stuck", f"{text}; the consumer: {self._consumer_text()}"
                )
            time.sleep(PAUSE / 2)

    def _wait_for_redis(self):
        if self.stack.redis_process.poll() is not None:
            raise FindingError("redis", "Redis has ended")
        self._wait("Redis answers", self.stack.answers)

    def _rest(self):
        """Wait until no event waits."""
        self._wait_for_redis()
        if not self.stack.consumer.is_alive:
            raise FindingError("consumer", f"it has ended: {self._consumer_text()}")
        self._wait("the consumer has all events", lambda: self.stack.waiting() == 0)

    def _compare_tables(self):
        try:
            problems = self.model.compare(self.stack.rows())
            quarantine = self.model.compare_quarantine(self.stack.quarantine())
        except (AssertionError, GyreError) as exc:
            raise FindingError("table", str(exc)) from exc
        if problems:
            raise FindingError("table", "; ".join(problems))
        if quarantine:
            raise FindingError("quarantine", "; ".join(quarantine))


def go_on(process):
    process.send_signal(signal.SIGCONT)


@contextmanager
def stopped(process):
    """Have a process stand until the block ends."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
