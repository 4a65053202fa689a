# [Task]: T062 [From]: specs/requirements.md
"""A bare Debian folder, and how a command gets into it as into a container."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# What this machine needs to reach packages: names of hosts, authorities, proxies.
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
_NETWORK_VARIABLES = re.compile(
    r"(https?|all|no)_proxy|uv_(default_|extra_)?index(_\w+)?|ssl_cert_file", re.IGNORECASE
)
# What the image python:slim has beyond the smallest Debian: authorities, and what CPython loads.
_PACKAGES = (
    "ca-certificates,netbase,tzdata,libbz2-1.0,libexpat1,libffi8,liblzma5,libncursesw6,"
    "libreadline8t64,libsqlite3-0,libssl3t64,libuuid1,zlib1g"
)
# In a mount table of its own, from which everything is gone when the command has ended.
_ENTER = """
set -e
root=$1 volume=$2 mode=$3
shift 3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
[ "$mode" = rw ] || mount -o remount,bind,ro "$root"
[ -z "$volume" ] || mount --bind "$volume" "$root/data"
exec "$@"
"""


def network_variables() -> dict[str, str]:
    return {name: v for name, v in os.environ.items() if _NETWORK_VARIABLES.fullmatch(name)}


def make_debian(folder: Path, release: str) -> None:
    """The smallest Debian there is, which reaches the network as this machine does."""
    options = ["--variant=minbase", f"--include={_PACKAGES}"]
    made = subprocess.run(
        # What it mounts is gone with it, however it ends.
        ["unshare", "--mount", "debootstrap", *options, release, str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    for file in filter(os.path.exists, _NETWORK_FILES):
        shutil.copyfile(file, f"{folder}{file}")


def add_python(folder: Path) -> None:
    """This machine's CPython, in the place where the image python:slim has its own."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    source, target = Path(sys.base_prefix), folder / "usr/local"
    shutil.copy2(source / "bin" / name, target / "bin")
    for alias in ("python3", "python"):
        (target / "bin" / alias).symlink_to(name)
    for library in source.glob("lib/libpython*.so*"):
        shutil.copy2(library, target / "lib", follow_symlinks=False)
    shutil.copytree(
        source / "lib" / name,
        target / "lib" / name,
        symlinks=True,
        # Neither what somebody has installed there nor what only a compiler needs.
        ignore=shutil.ignore_patterns("site-packages", "test", "config-*", "__pycache__"),
    )
    subprocess.run(["ldconfig", "-r", str(folder)], check=True)


def entering(
    root: Path,
    command: Sequence[str],
    *,
    folder: str = "/",
    user: str = "",
    volume: Path | None = None,
    read_only: bool = False,
) -> list[str]:
    """The command as process 1 below `root`, in `folder` there.

    With a `user`, as 10001:10001, it has no capability and can't get one. The `volume` is at /data.
    """
    unshare = shutil.which("unshare")
    assert unshare is not None
    enter = [unshare, "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", _ENTER, "sh"]
    mounts = [str(root), str(volume or ""), "ro" if read_only else "rw"]
    change = [unshare, f"--root={root}", f"--wd={folder}"]
    if user:
        number, group = user.split(":")
        change += ["setpriv", f"--reuid={number}", f"--regid={group}", "--clear-groups"]
        change += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    return [*enter, *mounts, *change, *command]
