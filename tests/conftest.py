"""Fixtures of all tests: real photographs, one Ray session, one S3 server."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CAPTIONS = {
    "skimage/data/astronaut.png": "An astronaut in an orange suit before a flag and a shuttle.",
    "skimage/data/chelsea.png": "A tabby cat looks to the left.",
    "skimage/data/coffee.png": "A cup of coffee on a saucer with a spoon.",
    "skimage/data/rocket.jpg": "A rocket on its launch pad at night.",
    "skimage/data/camera.png": "A man with a camera on a tripod.",
    "skimage/data/retina.jpg": "The back of an eye.",
    "sklearn/datasets/images/china.jpg": "A Chinese palace behind trees.",
    "sklearn/datasets/images/flower.jpg": "A pink dahlia.",
}


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of larger real material, where a checkout has it."""
    beside = Path(__file__).parents[1].parent / "shared/assets"
    path = Path(os.environ.get("NEXTSCALE_ASSETS", beside))
    if not path.is_dir():
        pytest.skip("no assets: set NEXTSCALE_ASSETS")
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs that lie inside wheels, with captions beside them; do not write here."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (name, caption) in enumerate(CAPTIONS.items()):
        package, _, inner = name.partition("/")
        module = __import__(package)
        picture = Path(module.__file__ or "").parent / inner
        shutil.copy(picture, folder / picture.name)
        if number % 2:
            (folder / f"{picture.stem}.txt").write_text(caption + "\n")
        else:
            told = {"caption": caption, "package": package}
            (folder / f"{picture.stem}.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray session for all tests; its 4 CPUs are slots, whatever the machine has."""
    from infra.cluster import session

    with session(num_cpus=4):
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a real S3 server process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
            break
        except OSError:
            assert server.poll() is None, "the S3 server did not start"
            assert time.monotonic() < deadline, "the S3 server did not answer in 120 s"
            time.sleep(0.2)
    yield address
    server.kill()
    server.wait()


@pytest.fixture
def s3(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[str]:
    """An empty bucket, ``s3://…``, that the usual AWS variables lead to."""
    import s3fs

    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client: Any = s3fs.S3FileSystem(use_listings_cache=False)
    bucket = f"test-{abs(hash(request.node.nodeid)):x}-{time.time_ns():x}"
    client.mkdir(bucket)
    yield f"s3://{bucket}"
    s3fs.S3FileSystem.clear_instance_cache()
