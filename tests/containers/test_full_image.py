"""The image with every package: of `serving-full`, and below a team's own."""

import shutil

import pytest

from tests.conftest import BIN
from tests.containers.replica import Replica, promote_native, promote_read_by_feast
from tests.support.tools.images import CLONE_ID, podman, run

pytestmark = pytest.mark.containers
TEAM = """
FROM {image}
COPY project /opt/project
ENV GYRE_PROJECT=/opt/project
"""


def test_the_image_serving_full_serves_versions_that_the_image_serving_refuses(
    rig, build, tmp_path
):
    replica = Replica(build("serving-full"), rig, tmp_path)
    shutil.copytree(rig.settings.home / "feast", replica.home / "feast")
    run("chown", "-R", "1000:1000", replica.home)
    native = promote_native(rig)
    with replica.running() as client:
        rig.answers_as(client, native)
        by_feast = promote_read_by_feast(rig)
        rig.answers_as(client, by_feast)
        assert rig.predict_online(client).is_success


def test_an_image_of_a_team_checks_its_project_and_has_no_build_tools(build, tmp_path):
    image = build("gyre")
    run(BIN / "gyre", "init", tmp_path / "project")
    (tmp_path / "Dockerfile").write_text(TEAM.format(image=image))
    team = f"localhost/gyre-team:test-{CLONE_ID}"
    run("buildah", "bud", "--isolation=chroot", f"--tag={team}", tmp_path, ends=900)
    output = podman("run", "--rm", "--network=host", "--read-only", team, "check")
    assert "\norders: ok" in output, output
    code = "import shutil; print(shutil.which('pip'), shutil.which('uv'), shutil.which('gcc'))"
    command = ("--entrypoint=python", image, "-c", code)
    assert podman("run", "--rm", "--network=host", *command) == "None None None"
