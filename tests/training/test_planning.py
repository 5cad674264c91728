"""The plan of a training: made when its run is opened, and pinned by tags for the stages."""

from feature_repo.published.service import PublishedService
from tests.conftest import AS_OF
from tests.training.conftest import SPEC
from training.data.lineage import FINGERPRINT, FIRST_EVENT_TAG
from training.planning import planned_run
from training.stages.dataset import dataset, load_frame

OTHER = SPEC.model_copy(update={"experiment": "planned_otherwise"})


def plan_of(settings):
    service = PublishedService(settings, SPEC.feature_service)
    return planned_run(settings, SPEC, service, AS_OF)


def test_the_stages_learn_from_the_snapshots_that_their_run_was_opened_for(
    tracked, tracking, second
):
    planned = plan_of(tracked)
    _, plan = load_frame(tracking, second.run_id)
    assert plan == planned.plan
    assert tracking.run(second.run_id).tags[FINGERPRINT] == planned.fingerprint


def test_a_dataset_is_planned_from_the_tags_of_its_run_alone(tracked, tracking, second):
    """A second try sees what the first has pinned, whatever landed since."""
    tags = tracking.run(second.run_id).tags
    pins = {name: tags[name] for name in tags if not name.startswith("mlflow.")}
    oldest = plan_of(tracked).plan.snapshots[0].start
    pins[FIRST_EVENT_TAG] = oldest.isoformat()
    run_id = tracking.start_or_find_run(OTHER.experiment, "later", "later", pins)
    dataset(tracked, OTHER, run_id)
    _, plan = load_frame(tracking, run_id)
    assert plan.snapshots[0].start > oldest, "a snapshot begins after the first event"
