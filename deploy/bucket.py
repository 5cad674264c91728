"""Make the buckets of GYRE_DATA_URL and GYRE_ARTIFACTS_URL, unless they are there."""

import sys
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from core.settings import load_settings

if __name__ == "__main__":
    settings = load_settings()
    patience = Config(connect_timeout=3, read_timeout=3, retries={"total_max_attempts": 1})
    s3 = boto3.client("s3", config=patience)
    urls = {"GYRE_DATA_URL": settings.data_url, "GYRE_ARTIFACTS_URL": settings.artifacts_url}
    for name, url in urls.items():
        bucket = urlsplit(url or "").netloc
        try:
            if bucket and bucket not in {each["Name"] for each in s3.list_buckets()["Buckets"]}:
                s3.create_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError) as exc:
            sys.exit(f"{name} {url}: {exc}")
