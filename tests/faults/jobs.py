"""Jobs in processes that may be killed: a program forks for each, as imports take far longer."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from core.project import PROJECT
from tests.support.tools.clone import outer_environment
from tests.support.tools.preloaded import commands_folder


@contextmanager
def program(*arguments, **variables):
    """Run python; what is yielded sends it a line of JSON and returns the line that answers."""
    with subprocess.Popen(
        [commands_folder() / "python", *arguments],
        cwd=PROJECT,
        env=outer_environment() | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def answer(request):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield answer


def serve(work):
    """Answer each line, a list of jobs, with what `work` returned; null where it was killed.

    The jobs of a line run at once. `work` is also given a barrier for all of them.
    """
    for line in sys.stdin:
        with TemporaryDirectory() as folder:
            print(json.dumps(answers(work, json.loads(line), Path(folder))), flush=True)  # noqa: T201


def answers(work, jobs, folder):
    begin = multiprocessing.get_context("fork").Barrier(len(jobs))
    files = [folder / str(number) for number in range(len(jobs))]
    processes = []
    for job, file in zip(jobs, files, strict=True):
        process = os.fork()
        if not process:
            os.dup2(2, 1)  # what it prints is no answer
            file.write_text(json.dumps(work(job, begin)))
            os._exit(0)
        processes.append(process)
    for process in processes:
        _, status = os.waitpid(process, 0)
        assert status in {0, signal.SIGKILL}
    return [json.loads(file.read_text()) if file.exists() else None for file in files]
