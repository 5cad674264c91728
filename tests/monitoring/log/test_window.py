"""What counts in a window: the last answer of each entity within 24 hours."""

from datetime import timedelta

from mlflow_server.roles import RoleAssignment
from monitoring.log.collect import collect
from monitoring.log.window import read_window
from tests.support.monitoring.log_lines import NOON, answer, write

KINDS = {
    "orders": "int64",
    "segment": "string",
    'a spend\'s "most"': "float64",
    "flag": "bool",
    "since": "timestamp",
}
FEATURES = {
    "orders": 3,
    "segment": 'größer: "1"',
    'a spend\'s "most"': -1.25,
    "flag": True,
    "since": "2026-11-20T12:00:00Z",
}
NULLS = dict.fromkeys(KINDS)
HOUR = timedelta(hours=1)


def test_the_last_answer_of_each_entity_counts_and_others_are_left_out_by_reason(
    settings,
):
    def row(name, received=NOON - HOUR, features=FEATURES, **change):
        return answer(name, received, features=features, **change)

    rows = [
        row("newest", NOON),
        row("oldest", NOON - 24 * HOUR + timedelta(seconds=1)),
        row("too old", NOON - 24 * HOUR),
        row("too new", NOON + timedelta(seconds=1)),
        row("nulls", features=NULLS, probability=None),
        row("first", NOON - 2 * HOUR, entity="twice"),
        row("second", NOON - HOUR, entity="twice", probability=0.75),
        row("other model", model="n"),
        row("of a deleted model", NOON, created=-1, entity="twice"),
        row("other version", version="2"),
        row("outside", in_population=False),
        row("nobody", entity=None),
        row("defaults", features_from="defaults"),
        row("fewer features", features={"orders": 1}),
        row("wrong type", features=FEATURES | {'a spend\'s "most"': "x"}),
    ]
    for part in (rows[::2], rows[1::2]):
        write(settings, "predictions-1-1.jsonl", *part)
        collect(settings)
    answers = read_window(settings, RoleAssignment("m", 0), "1", KINDS, NOON, ())
    assert answers.left_out == {
        "replaced by a later prediction": 1,
        "of another version": 1,
        "outside the population": 1,
        "without an entity": 1,
        "answered from defaults": 1,
        "with other features": 2,
    }
    frame = answers.rows
    assert [*frame] == [*KINDS, "score"]  # no entity
    assert sorted(frame["score"]) == [0.5, 0.5, 0.75, 1.0]
    is_null = frame["score"] == 1.0
    assert frame.loc[is_null, [*KINDS]].isna().all(axis=None)
    assert frame.loc[~is_null, [*KINDS]].to_dict("records") == [FEATURES] * 3
