"""The image of this tree, made without a registry and without compiling Rust: the native engine is the one that is installed here."""

import shutil
import zipfile
from importlib import metadata
from pathlib import Path

from containers.fleet import ROOT, docker, run
from containers.images import base_image

BASE, IMAGE = "qproxy-test-base:local", "qproxy-test:local"
NATIVE = "qproxy_native"
BUILD_LIMIT = 400.0
"""Seconds: half a minute where nothing else runs, most of it for the packages that pip fetches."""
COPIED = ("balancer", "conf.d", "deploy", "native", "proxy", "scripts", "Dockerfile", ".dockerignore", "LICENSE", "README.md")


def packed(name: str, folder: Path) -> Path | None:
    """An installed distribution as the wheel that it came from, in *folder*; None where it is not installed."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    tag = next(line.partition(": ")[2] for line in (distribution.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: "))
    wheel = folder / f"{name}-{distribution.version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in distribution.files or ():
            if not {"..", "__pycache__"} & {*file.parts} and file.name not in {"INSTALLER", "REQUESTED", "direct_url.json"}:
                archive.write(str(file.locate()), str(file))
    return wheel


def context(folder: Path) -> str:
    """What ``docker build`` is given, and how: the sources, with the native engine as a wheel in dist/. Returns the argument NATIVE."""
    ignored = shutil.ignore_patterns("__pycache__", "target", "patched", "*.so")
    for name in (*COPIED, "pyproject.toml", "setup.py"):
        source = ROOT / name
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy2(source, folder / name)
    (folder / "dist").mkdir()
    return "off" if packed(NATIVE, folder / "dist") is None else "wheel"


def build(folder: Path) -> str:
    """The tag."""
    native = context(folder)
    base_image(BASE)
    arguments = ["--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", f"NATIVE={native}", "-t", IMAGE]
    run("docker", "build", "-q", "--force-rm", *arguments, folder, limit=BUILD_LIMIT)
    return IMAGE


def clean() -> None:
    """Remove the images, and what the build's stages left."""
    for image in (IMAGE, BASE):
        if docker("images", "-q", image):
            docker("rmi", "-f", image)
    docker("image", "prune", "-f", "--filter", "label=qproxy.stage=build")
