"""`python -m docs.notebooks [NAME …]`: execute docs/notebooks/ on the stack that runs, and store them.

The stack is the one of tests/support/monitoring/drifted_stack.py. Its address is not in a notebook.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import nbformat
from nbclient import NotebookClient

from core.project import CLONE

if TYPE_CHECKING:
    from pathlib import Path

NOTEBOOKS = CLONE / "docs" / "notebooks"
NO_WIDGETS = "ignore:IProgress not found"
"""A warning of tqdm, which names a path, where Jupyter's widgets are not installed."""
TIMEOUT_SECONDS = 900
"""Time of a cell: a training frame takes 10 s on a quiet machine."""


def executed(path: Path) -> Any:
    """Return a notebook with the outputs of a new run.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raises an error.

    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(CLONE)}},
    )
    return client.execute(env=os.environ | {"PYTHONWARNINGS": NO_WIDGETS})


def output_text(notebook: Any, cell_id: str) -> str:
    """Return what a cell has printed or shown, as text."""
    (cell,) = [cell for cell in notebook.cells if cell["id"] == cell_id]
    texts = []
    for output in cell["outputs"]:
        texts.append(output.get("text", ""))
        texts.append(output.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)


if __name__ == "__main__":
    names = sys.argv[1:] or ["*"]
    for path in sorted(
        path for name in names for path in NOTEBOOKS.glob(f"{name}.ipynb")
    ):
        content = executed(path)
        # The version of the Python that ran it says nothing to a reader.
        content["metadata"] = {"kernelspec": content["metadata"]["kernelspec"]}
        text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(f"{text}\n", "utf-8")
