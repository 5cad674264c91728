"""The processes of one machine, and Airflow's API."""
