"""Programs with what Feast's store for DynamoDB imports."""

import subprocess

from core.project import CLONE

ENVIRONMENT = ".venv-dynamodb"
"""Where aiobotocore is, which Feast's store imports, with the older boto3 that it wants."""


def dynamodb_programs():
    """Return the folder of the programs; their environment is made if it is not there."""
    command = ["make", "--silent", f"{ENVIRONMENT}/gyre.stamp"]
    subprocess.run(command, cwd=CLONE, check=True)
    return CLONE / ENVIRONMENT / "bin"
