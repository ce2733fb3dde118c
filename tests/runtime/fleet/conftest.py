"""A store that speaks S3, on this machine."""

import dataclasses
import logging
import urllib.request
from typing import Any

import pytest

ACCESS_KEY, SECRET_KEY = "AKIAOFTHETESTS", "the-secret-of-the-tests"


@dataclasses.dataclass
class Store:
    """A bucket ``plant`` and how it is reached."""

    client: Any
    host: str

    @property
    def query(self):
        """What follows every address of this store."""
        return f"?scheme=http&endpoint_override={self.host}&region=us-east-1"

    def address(self, path):
        return f"s3://plant/{path}{self.query}"

    def put(self, folder, prefix):
        for file in folder.iterdir():
            self.client.put_object(Bucket="plant", Key=f"{prefix}/{file.name}", Body=file.read_bytes())


@pytest.fixture
def store(monkeypatch):
    boto3 = pytest.importorskip("boto3", reason="needs moto[server]")
    server = pytest.importorskip("moto.server", reason="needs moto[server]").ThreadedMotoServer("127.0.0.1", 0)
    monkeypatch.setattr(logging.getLogger("werkzeug"), "disabled", True)  # a line for each request
    server.start()
    try:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        host = ":".join(map(str, server.get_host_and_port()))
        urllib.request.urlopen(f"http://{host}/moto-api/reset", data=b"")  # all servers of a process share what is stored
        client = boto3.client("s3", endpoint_url=f"http://{host}", region_name="us-east-1")
        client.create_bucket(Bucket="plant")
        yield Store(client, host)
    finally:
        server.stop()


@pytest.fixture
def secret():
    return SECRET_KEY
