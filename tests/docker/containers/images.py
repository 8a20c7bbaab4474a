"""Images where no registry is reached, out of what runs on this machine: a stand-in for python:3.X-slim, and one host program each.

A root file system is gathered in memory as a tar archive and given to ``docker import``: some seconds, no package manager. Programs come
with the shared libraries that ``ldd`` names. Needs glibc and Debian's file layout (usr-merge).
"""

import io
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

TOOLS = (
    *("sh", "bash", "ls", "cat", "cp", "mv", "rm", "ln", "mkdir", "rmdir", "chmod", "chown", "mktemp", "id", "env", "sleep", "date"),
    *("head", "tail", "cut", "tr", "sort", "uniq", "wc", "grep", "sed", "awk", "find", "xargs", "tar", "gzip", "true", "false", "test"),
    *("touch", "install", "uname", "hostname", "getent", "timeout", "nproc", "stat", "kill", "ps"),
)
"""What a slim image has of programs, more or less; those that are absent here are absent there."""

UNWANTED = re.compile(
    r"(^|/)(test|tests|idlelib|tkinter|turtledemo|__pycache__|lib2to3)(/|$)|\.a$|/config-|_tkinter|site-packages/(?!pip(/|$|-[^/]*\.dist-info))"
)
"""Of the interpreter's library."""

FOLDERS = ("tmp", "proc", "sys", "dev", "run", "root", "data", "etc/ssl/certs", "var/tmp", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64")
LINKS = ("bin", "sbin", "lib", "lib64")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


class Root:
    """A root file system that grows. Every file stands in it once."""

    def __init__(self) -> None:
        self._archive = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._archive, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115  # ``load`` closes it
        self._there: set[str] = set()
        for name in FOLDERS:
            self._folder(name)
        for name in LINKS:
            self.link(name, f"usr/{name}")
        self.write("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        self.write("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
        self.write("etc/nsswitch.conf", b"hosts: files dns\n")

    def _new(self, name: str) -> bool:
        """Whether nothing stands there yet, its folders made."""
        if name in self._there:
            return False
        self._there.add(name)
        for folder in reversed(Path(name).parents[:-1]):
            if str(folder) not in self._there:
                self._folder(str(folder))
        return True

    def _folder(self, name: str) -> None:
        if self._new(name):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            info.mode = 0o1777 if name in {"tmp", "var/tmp", "data"} else 0o755
            self._tar.addfile(info)

    def link(self, name: str, target: str) -> None:
        if self._new(name):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            self._tar.addfile(info)

    def write(self, name: str, content: bytes, mode: int = 0o644) -> None:
        if self._new(name):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            self._tar.addfile(info, io.BytesIO(content))

    def add(self, source: Path, name: str = "") -> None:
        """A file of this machine, at the same place unless *name* says another one; links are followed."""
        name = name or _merged(source)
        executable = source.stat().st_mode & stat.S_IXUSR
        self.write(name, source.read_bytes(), 0o755 if executable else 0o644)

    def add_program(self, program: Path, name: str = "") -> None:
        """With its libraries."""
        self.add(program.resolve(), name or _merged(program))
        self.add_libraries([program.resolve()])

    def add_libraries(self, programs: Sequence[Path]) -> None:
        for library in libraries(programs):
            self.add(library)

    def load(self, tag: str, *changes: str) -> None:
        """Make the image, with instructions of a Dockerfile."""
        self._tar.close()
        told = [argument for change in changes for argument in ("-c", change)]
        subprocess.run(["docker", "import", *told, "-", tag], input=self._archive.getvalue(), stdout=subprocess.DEVNULL, check=True)


def libraries(programs: Sequence[Path]) -> list[Path]:
    """The shared libraries that *programs* need, as the loader finds them."""
    found = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    return sorted({Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+)", found, re.MULTILINE)})


def _merged(path: Path) -> str:
    """Where a file goes: /bin, /lib and so on are links to /usr."""
    name = str(path).lstrip("/")
    return f"usr/{name}" if name.partition("/")[0] in LINKS else name


def base_image(tag: str) -> None:
    """A stand-in for python:3.X-slim: the interpreter that runs this, pip, glibc, a few tools. No user but root and nobody."""
    root = Root()
    prefix = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    root.add((prefix / "bin" / version).resolve(), f"usr/local/bin/{version}")
    root.link("usr/local/bin/python3", version)
    root.link("usr/local/bin/python", version)
    pip = "#!/usr/local/bin/python3\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n"
    root.write("usr/local/bin/pip", pip.encode(), 0o755)
    standard = prefix / "lib" / version
    for file in sorted(standard.rglob("*")):
        inside = str(file.relative_to(standard))
        if file.is_file() and not UNWANTED.search(inside):
            root.add(file, f"usr/local/lib/{version}/{inside}")
    for file in (prefix / "lib").glob("libpython*.so*"):
        root.add(file, f"usr/local/lib/{file.name}")
    root.add_libraries([prefix / "bin" / version, *(standard / "lib-dynload").glob("*.so")])
    for file in _files_of(["libc6", "libgcc-s1", "libstdc++6"]):  # wheels may name any of these, whatever the interpreter does
        if re.search(r"^(/usr)?/lib.*\.so[.0-9]*$", str(file)) and file.is_file():
            root.add(file)
    for tool in TOOLS:
        if (found := shutil.which(tool)) is not None:
            root.add_program(Path(found), f"usr/bin/{tool}")
    root.add(Path("/etc/os-release"))
    if CERTIFICATES.exists():
        root.add(CERTIFICATES)
    pip_settings = f"ENV PIP_CERT=/{_merged(CERTIFICATES)} PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1"
    root.load(tag, f"ENV PATH={PATH}", "ENV LANG=C.UTF-8", pip_settings, 'CMD ["python3"]')


def program_image(tag: str, program: str) -> None:
    """One program of this machine, as the entry point."""
    found = shutil.which(program)
    assert found is not None, f"there is no {program} here"
    root = Root()
    root.add_program(Path(found), f"usr/local/bin/{program}")
    root.add_program(Path("/bin/sh"), "usr/bin/sh")
    root.load(tag, f"ENV PATH={PATH}", f'ENTRYPOINT ["/usr/local/bin/{program}"]', "WORKDIR /data")


def _files_of(packages: Iterable[str]) -> list[Path]:
    listed = subprocess.run(["dpkg", "-L", *packages], capture_output=True, text=True, check=False).stdout
    return [Path(line) for line in listed.splitlines()]
