"""`gyre`, `feast` and `python` with their libraries imported once for all commands of a test run.

`commands_folder()` has programs of these names, to be put first in PATH. Each sends its arguments,
folder, environment and open files to a server: a process that has imported the libraries, and
nothing of this project. The server forks, and the fork does what the command would do by itself:
it imports the project that PYTHONPATH names, and calls the same entry point. Importing the
libraries takes seconds, forking takes hundredths.
"""

import fcntl
import gc
import inspect
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from shutil import rmtree
from types import ModuleType

import psutil

LIBRARIES = """
prometheus_client croniter deltalake duckdb evidently fastapi feast
feast.infra.compute_engines.local.compute feast.infra.offline_stores.duckdb
feast.infra.online_stores.redis feast.infra.passthrough_provider feast.infra.registry.file
feast.repo_operations filelock flask graphene great_expectations httpx ibis.backends.duckdb
matplotlib.figure mlflow.onnx mlflow.pyfunc.scoring_server mlflow.sklearn
mlflow.store.model_registry.sqlalchemy_store mlflow.store.tracking.sqlalchemy_store
narwhals._pandas_like.namespace obstore onnxruntime pyarrow.parquet pydantic_settings
rich.syntax scipy.stats skl2onnx sklearn.ensemble sklearn.linear_model skops.io typer
upath.implementations.local uvicorn
"""
"""The first before Feast, which would have it write into a folder of this process."""
FOLDER = "TEST_COMMANDS"
"""Variable that tells a process where the programs are."""
NAMES = ("gyre", "feast", "python")
CLIENT = """#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    arguments = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    job = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(job).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(job)
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


@cache
def commands_folder() -> Path:
    """Return the folder of the programs; their server is one for all workers of a test run.

    It ends with the run, however that ends. What a test starts has the same one.
    """
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    since = psutil.Process(run).create_time()  # numbers of processes come again
    folder = Path(tempfile.gettempdir()) / f"gyre-commands-{run}-{since}"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "tmp").chmod(0o1777)  # databases are not started by root
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "python").exists():
            start(folder, run)
    os.environ[FOLDER] = str(folder)
    return folder


def start(folder: Path, run: int) -> None:
    """Start a server that ends with process `run`, then write the programs."""
    address = str(folder / "socket")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GYRE_", "PROMETHEUS_", "PYTEST_"))
    }
    server = subprocess.Popen(
        [sys.executable, __file__, address, str(run)],
        cwd="/",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with server.stdout as output:
        if output.readline() != b"ready\n":
            raise ChildProcessError("the server of the commands did not start")
    server.returncode = 0  # it ends after this process, which need not wait for it
    for name in NAMES:
        program = folder / name
        program.write_text(CLIENT.format(python=sys.executable, address=address))
        program.chmod(0o755)


def serve(address: str, end: int) -> list[str]:
    """Fork for each client. Returns in the fork, with the arguments of its command.

    end: a pidfd of the test run.
    """
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        Path(address).chmod(
            0o600
        )  # who connects runs commands; others may enter the folder
        listening.listen()
        os.write(1, b"ready\n")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            readable, _, _ = select.select([listening, end], [], [])
            if end in readable:
                rmtree(Path(address).parent, ignore_errors=True)
                os._exit(0)
            client, _ = listening.accept()
            if os.fork() == 0:
                break
            client.close()
    os.close(end)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return take_over(client)


def take_over(client: socket.socket) -> list[str]:
    """Fork once more: this process waits for the end, the other becomes the command."""
    header, files, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as stream:
        job = stream.read(int.from_bytes(header, "big"))
    arguments, folder, environment = json.loads(job)
    command = os.fork()
    if command:
        report_end(client, command)
    client.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = (
        None  # what it was in this process; the environment names another one
    )
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = filter(None, paths)
    return arguments


def report_end(client: socket.socket, command: int) -> None:
    """Send the exit code of process `command`; kill it if its client has ended before it."""
    end = os.pidfd_open(command)
    readable, _, _ = select.select([end, client], [], [])
    if end not in readable:
        os.kill(command, signal.SIGKILL)
    _, status = os.waitpid(command, 0)
    code = os.waitstatus_to_exitcode(status)
    with suppress(OSError):
        client.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def exit_code(name: str, *arguments: str) -> int:
    """Run a command to its end, as a shell does."""
    try:
        run(name, *arguments)
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return exc.code or 0
        sys.stderr.write(f"{exc.code}\n")
        return 1
    except BaseException:  # noqa: BLE001  (the interpreter does so, too)
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def run(name: str, *arguments: str) -> None:
    """Do what `name` does with `arguments` in a shell; python knows -u, -c, -m and - alone."""
    sys.argv = [name, *arguments]
    if name != "python":
        (entry_point,) = entry_points(group="console_scripts", name=name)
        sys.exit(entry_point.load()())
    option, *rest = arguments
    if option == "-u":  # as execnet starts a worker of pytest
        option, *rest = rest
    sys.path.insert(0, "")
    if option == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    code = rest.pop(0) if option == "-c" else sys.stdin.read()
    sys.argv = [option, *rest]
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


if __name__ == "__main__":
    end = os.pidfd_open(int(sys.argv[2]))
    sys.path.pop(0)  # this file's folder
    gc.disable()  # a fifth of the time
    for library in LIBRARIES.split():
        import_module(library)
    gc.enable()
    # Remembers the file of each; pydantic asks at each import.
    inspect.getmodule(sys._getframe())
    gc.freeze()
    code = exit_code(*serve(sys.argv[1], end))
    threading._shutdown()  # ends pools of threads, and waits for threads, as the interpreter does
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at a fork's exit, libraries wait for threads that it does not have
