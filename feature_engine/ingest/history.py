"""Which content of a key counts, where both a source and events give contents of it.

A source that lags repeats what it said before, or says what an event has said: neither undoes a later
event. Order is that of acknowledgement (an event) and of the start of an ingest's reading (a
delivery). docs/events.md has the rule in words and as a table, docs/adr/0043 the reasons.

Functions of this module are pure: they know digests of contents, and no table.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Literal, NamedTuple

MICROSECOND = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MARK = "_gyre_log"
"""Field of a history as JSON; no column of a source has such a name."""
ENCODER = json.JSONEncoder(sort_keys=True)
DIGEST_BYTES = 8
MOST_CONTENTS = 1_000
"""Contents of one key that are kept; of more the oldest events go."""
LONG_AGO = 0
"""Time of a content whose time nobody noted."""


class Content(NamedTuple):
    """A content of a key, as it was learnt.

    Attributes:
        at: Microseconds since 1970 by the broker's clock.
        origin: "s" of the source, "e" of an event.
        digest: Equal for equal contents.

    """

    at: int
    origin: Literal["s", "e"]
    digest: str


@dataclass(frozen=True)
class History:
    """What was learnt of a key, in order, as far as it can matter.

    Attributes:
        contents: A delivery that repeats the one before is left out.
        said: The source's last row, as JSON; "" if it said none.
        sent: The row of the last event, as JSON; "" if there was none.

    """

    contents: tuple[Content, ...] = ()
    said: str = ""
    sent: str = ""

    def with_delivery(self, at: int, row: str) -> "History":
        """Add what the source says now, later than all that it said before."""
        if row == self.said:
            return self
        # Deliveries come one after the other, whatever a clock says.
        last = max(
            (each.at for each in self.contents if each.origin == "s"), default=at
        )
        content = Content(max(at, last), "s", digest_of(row))
        return replace(self._with(content), said=row)

    def with_event(
        self, at: int, row: str, landed: "History | None" = None
    ) -> "History":
        """Add an event, which may be older than what is known; an event that lands again counts once.

        Events of one request have one time, and a content may come twice among them. They land
        together and in their order, so that behind a new one all are new.

        Args:
            at: See `Content`.
            row: The event's row, as JSON.
            landed: What the table had before the events that land with this one; None: this.

        """
        event = Content(at, "e", digest_of(row))
        if not self.contents:
            return History((event,), sent=row)
        landed_contents = self.contents if landed is None else landed.contents
        is_behind_new = _events_at(self.contents, at) != _events_at(landed_contents, at)
        if event in landed_contents and not is_behind_new:
            return self
        events = [content.at for content in self.contents if content.origin == "e"]
        is_last = not events or events[-1] <= at
        return replace(self._with(event), sent=row if is_last else self.sent)

    def since(self, at: int) -> "History":
        """Return the events that came after a time."""
        contents = tuple(content for content in self.contents if content.at > at)
        return History(contents, sent=self.sent if contents else "")

    def _with(self, content: Content) -> "History":
        place = bisect_right(self.contents, content.at, key=attrgetter("at"))
        before, after = self.contents[:place], self.contents[place:]
        return replace(self, contents=(*before, content, *after))

    def counting_row(self, lag: int) -> str:
        """Return the row that counts, as JSON.

        Args:
            lag: Microseconds within which the source may catch up with an event.

        """
        counts = fold(self.contents, lag).counts
        is_event = counts is not None and counts.origin == "e"
        return self.sent if is_event else self.said

    def is_behind(self, now: int, lag: int) -> bool:
        """Whether the source has said another row than the one that counts, for longer than `lag`."""
        counts = fold(self.contents, lag).counts
        return bool(
            self.said
            and counts is not None
            and counts.digest != digest_of(self.said)
            and now - counts.at > lag
        )

    def pruned(self, now: int, lag: int, *, may_come_late: bool) -> "History":
        """Leave out what can no longer matter.

        Args:
            now: Microseconds since 1970 by the broker's clock.
            lag: See `counting_row`. No event comes later than that.
            may_come_late: Whether an event may still land that is older than what is known.

        """
        if len(self.contents) == 1:  # one content always matters
            return self
        limit = now - lag if may_come_late else now + 1
        old = [content for content in self.contents if content.at < limit]
        recent = self.contents[len(old) :]
        state = fold(old, lag)
        base = [state.said] if state.said else []
        base += [
            event
            for event in state.events
            if event.at >= min(limit, now) - lag or event == state.counts
        ]
        contents = (*base, *recent)
        has_event = any(content.origin == "e" for content in contents)
        surplus = max(len(contents) - MOST_CONTENTS, 0)
        first = contents[:1] if surplus and contents[0].origin == "s" else ()
        return replace(
            self,
            contents=(*first, *contents[surplus + len(first) :]),
            sent=self.sent if has_event else "",
        )

    @property
    def is_plain(self) -> bool:
        """Whether the row alone says it all: the source gave it, and nothing else is known."""
        return len(self.contents) == 1 and self.contents[0].origin == "s"


class State(NamedTuple):
    """What contents come to.

    Attributes:
        counts: The content that counts.
        said: What the source said last; its time is that of the event which it has caught up with.
        events: Events since then, oldest first.

    """

    counts: Content | None
    said: Content | None
    events: list[Content]


def fold(contents: Sequence[Content], lag: int) -> State:
    """Apply the rule to contents in their order.

    A delivery that repeats what the source said last is no news. Else, one that says what an event
    since then said is an echo: no news, and the source is that far. Anything else counts, and the
    events before it are settled.
    """
    counts: Content | None = None
    said: Content | None = None
    events: list[Content] = []
    for content in contents:
        if content.origin == "e":
            events.append(content)
            counts = content
            continue
        if said is not None and content.digest == said.digest:
            continue
        echoes = [
            number
            for number, event in enumerate(events)
            if event.digest == content.digest and content.at - event.at <= lag
        ]
        if echoes:
            said = content._replace(at=events[echoes[0]].at)
            events = events[echoes[0] + 1 :]
        else:
            said = counts = content
            events = []
    return State(counts, said, events)


def _events_at(contents: Iterable[Content], at: int) -> list[Content]:
    return [content for content in contents if content[:2] == (at, "e")]


def digest_of(row: str) -> str:
    """Return a digest of a row's JSON, whose fields are sorted."""
    return blake2b(row.encode(), digest_size=DIGEST_BYTES).hexdigest()


def microseconds(time: datetime) -> int:
    """Return a time as microseconds since 1970."""
    return (time - EPOCH) // MICROSECOND


def read_history(stored: str | None, row: str, at: int = LONG_AGO) -> History:
    """Return the history of a row of the raw table.

    Args:
        stored: Its column `superseded`: None if the source gave the row and nothing else is known.
            Older releases wrote "" for an event of a new key, and the source's row for an event
            that corrected it.
        row: The row's columns of the source, as JSON.
        at: When the source gave the row, if nothing else is known of it.

    """
    if stored is None:
        return History((Content(at, "s", digest_of(row)),), said=row)
    document = json.loads(stored) if stored else {}
    if MARK not in document:
        said = ENCODER.encode(document) if document else ""
        event = Content(LONG_AGO, "e", digest_of(row))
        source = [Content(LONG_AGO, "s", digest_of(said))] if said else []
        return History((*source, event), said=said, sent=row)
    return History(
        contents=tuple(
            Content(at, origin, digest or digest_of(row))
            for at, origin, digest in document[MARK]
        ),
        said=_read_row(document["said"], row),
        sent=_read_row(document["sent"], row),
    )


def without_rows(stored: str, is_forgotten: Callable[[str], bool]) -> str | None:
    """Return a value of the column `superseded` that keeps nothing of some rows.

    Args:
        stored: The value.
        is_forgotten: Says of a row, as JSON, whether it is one of them.

    Returns:
        The value without them; None if nothing of it is left.

    """
    document = json.loads(stored)
    forgotten_digests = set()
    for name in ("said", "sent"):
        row = _read_row(document.get(name), "")
        if row and is_forgotten(row):
            document[name] = None
            forgotten_digests.add(digest_of(row))
    contents = [
        content
        for content in document.get(MARK, [])
        if content[2] not in forgotten_digests
    ]
    return ENCODER.encode(document | {MARK: contents}) if contents else None


def write_history(history: History, row: str) -> str:
    """Return the value of the column `superseded`; a row that is the stored one is `true`."""
    document = {
        MARK: history.contents,
        "said": _written_row(history.said, row),
        "sent": _written_row(history.sent, row),
    }
    return ENCODER.encode(document)


def history_of_new_row(at: int) -> str:
    """Return the value of the column `superseded` of any row that the source has given first.

    Args:
        at: See `Content`.

    """
    contents = [(at, "s", None)]
    return ENCODER.encode({MARK: contents, "said": True, "sent": None})


def _written_row(text: str, row: str) -> Any:
    if text == row:
        return True
    return json.loads(text) if text else None


def _read_row(value: Any, row: str) -> str:
    if value is True:
        return row
    return ENCODER.encode(value) if value else ""
