"""Servers written in Java, which Maven brings into `.venv-kafka/` once: `make kafka`."""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from core.project import CLONE
from tests.support.tools.debian import install

CACHE = CLONE / ".venv-kafka"
"""Git ignores it; a folder in it is named after its version."""
KAFKA = "4.1.1"
REGISTRY = "3.0.9"
"""The last one that runs on Java 17, which Debian 12 has; 3.3 needs Java 21."""
POM = f"""
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>gyre</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA}</version>
    </dependency>
    <dependency>
      <!-- What Kafka logs goes nowhere without it. -->
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>2.24.3</version>
    </dependency>
  </dependencies>
</project>
"""
COPY = "dependency:copy-dependencies"
UNPACK = "dependency:unpack"


def kafka_jars() -> Path:
    """Folder of the jars of a Kafka broker, 43 MB."""
    return _fetched(f"kafka-{KAFKA}", COPY)


def registry_jars() -> Path:
    """Folder of Apicurio Registry, 115 MB."""
    artifact = f"io.apicurio:apicurio-registry-app:{REGISTRY}:tar.gz:all"
    return _fetched(f"registry-{REGISTRY}", UNPACK, f"-Dartifact={artifact}")


def _fetched(name: str, *goal: str) -> Path:
    """Have Maven write a folder, unless it is there.

    Args:
        name: Of the folder.
        goal: What Maven does, and its options.

    Returns:
        The folder.

    Raises:
        RuntimeError: Maven cannot bring a file; in one line.

    """
    CACHE.mkdir(exist_ok=True)
    folder = CACHE / name
    with FileLock(CACHE / "lock"):
        if not folder.exists():
            _install_java()
            with TemporaryDirectory(dir=CACHE) as project:
                _run_maven(Path(project), *goal)
                (Path(project) / "jars").rename(folder)
    return folder


def _install_java() -> None:
    programs = {"mvn": "maven", "java": "default-jre-headless"}
    missing = [
        package for program, package in programs.items() if not shutil.which(program)
    ]
    if missing:
        install(*missing)


def _run_maven(project: Path, *goal: str) -> None:
    (project / "pom.xml").write_text(POM)
    command = ["mvn", "--quiet", "--batch-mode", "--strict-checksums", *goal]
    done = subprocess.run(
        [*command, f"-DoutputDirectory={project}/jars"],
        cwd=project,
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        first_error = done.stdout.partition("[ERROR] ")[2].partition("\n")[0]
        raise RuntimeError(
            f"Maven cannot bring the servers of `make kafka`: let it reach "
            f"repo.maven.apache.org or a mirror in ~/.m2/settings.xml: {first_error}"
        )


if __name__ == "__main__":
    try:
        kafka_jars()
        registry_jars()
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))
