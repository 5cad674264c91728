"""The one file with DAGs that Gyre's own Airflow reads; steps run in the process of a task."""

from dags.builder import build_dags
from dags.steps import all_plans, run_step

build_dags(all_plans(), run_step)
