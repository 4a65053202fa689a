# [Task]: T078 [From]: specs/requirements.md
"""HTTP itself once more, with nginx in front, which passes on what it does not refuse.

Not TestLists, since nginx refuses If-Match in several lines; nor TestLostBody, since it waits for
bodies.
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from postgresql import free_port
from service import Service, until
from wire.test_http import TestBody, TestCurl, TestHead, TestHugeHead, wire

__all__ = ["TestBody", "TestCurl", "TestHead", "TestHugeHead", "wire"]

CONFIGURATION = """
daemon off; pid {folder}/pid; error_log {folder}/errors; worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/a; uwsgi_temp_path {folder}/b; scgi_temp_path {folder}/c;
    server {{
        listen 127.0.0.1:{port};
        server_name test;
        set $given $http_host;
        if ($given = "") {{ set $given $server_name; }}
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $given;
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def port(service: Service) -> Iterator[int]:
    """Where nginx listens, which passes everything on to the service."""
    port = free_port()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "nginx.conf"
        file.write_text(CONFIGURATION.format(folder=folder, port=port, upstream=service.port))
        path = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
        nginx = subprocess.Popen(["nginx", "-c", file, "-e", f"{folder}/errors"], env=path)

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            until(listens)
            yield port
        finally:
            nginx.terminate()
            nginx.wait()
