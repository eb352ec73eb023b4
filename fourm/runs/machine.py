"""What this machine has: versions, devices, memory, caches, environment variables, for a report of a bug."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from fourm import __version__
from fourm.errors import one_line
from fourm.hub.cache import cache_folder, fourm_home

Facts = Mapping[str, str | int]  # by name; a number is a count of bytes
# Variables that change what fourm does; secrets are only said to be set.
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
VARIABLES = (
    "HF_HOME HF_HUB_CACHE HUGGINGFACE_HUB_CACHE XDG_CACHE_HOME HF_ENDPOINT HF_HUB_OFFLINE HF_TOKEN_PATH "
    "FOURM_GITHUB_ENDPOINT HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy "
    "no_proxy SSL_CERT_FILE CUDA_VISIBLE_DEVICES PYTORCH_CUDA_ALLOC_CONF OMP_NUM_THREADS MKL_NUM_THREADS "
    "MKL_CBWR RANK WORLD_SIZE LOCAL_RANK PYTHONPATH LANG LC_ALL TERM COLUMNS NO_COLOR"
).split()
_CREDENTIALS = re.compile(r"(^|//)[^/@]*@")  # of a URL: user and password


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """All that is known of this machine."""

    versions: Facts
    devices: Facts
    memory: Facts
    caches: Facts
    environment: Facts
    to_json = asdict


def describe_machine() -> MachineFacts:
    """Look at this machine. Imports torch; what fails there is told in the place of its version."""
    versions, devices = dict(_versions()), dict[str, str | int]()
    memory = {"total": total} if (total := _total_memory()) else {}
    try:
        import torch  # not at the top: this report is for machines too where it cannot be imported

        from fourm.networks.memory import free_memory

        versions["torch"] = str(torch.__version__)
        versions |= {"CUDA": str(torch.version.cuda)} if torch.version.cuda else {}
        devices |= dict(_devices())
        memory["available"] = int(free_memory(torch.device("cpu")))
    except Exception as error:  # libraries that do not fit raise many kinds
        versions["torch"] = one_line(f"cannot be used ({type(error).__name__}: {error})")
    return MachineFacts(versions, devices, memory, dict(_caches()), dict(_environment()))


def _versions() -> Iterator[tuple[str, str | int]]:
    yield "fourm", f"{__version__} in {Path(__file__).parents[2]}"
    yield "python", f"{platform.python_version()} at {sys.executable}"
    yield "system", platform.platform()
    try:
        wanted = [line for line in requires("fourm") or () if "extra ==" not in line or "fast" in line]
    except PackageNotFoundError:  # a source tree that is not installed
        wanted = ["torch"]
    for name in dict.fromkeys(re.split(r"[^\w.-]", line)[0] for line in wanted):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"


def _devices() -> Iterator[tuple[str, str | int]]:
    """A line for each device that torch can use."""
    import torch

    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield "cpu", f"{platform.machine()}, {threads}, {torch.backends.cpu.get_cpu_capability()}"
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(number)
        free, total = (f"{count / 1e9:.1f} GB" for count in torch.cuda.mem_get_info(number))
        what = f"{found.name}, compute capability {found.major}.{found.minor}"
        yield f"cuda:{number}", f"{what}, {free} of {total} free"
    if torch.backends.mps.is_available():
        yield "mps", "Apple GPU"


def _total_memory() -> int:
    """Bytes of memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _caches() -> Iterator[tuple[str, str | int]]:
    for name, folder in (("models", cache_folder()), ("records", fourm_home()), ("here", Path.cwd())):
        yield name, str(folder)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        yield f"{name}, free", shutil.disk_usage(there).free


def _environment() -> Iterator[tuple[str, str | int]]:
    for name in SECRETS:
        yield name, "set" if os.environ.get(name) else "not set"
    for name in VARIABLES:
        if name in os.environ:
            yield name, _CREDENTIALS.sub(r"\1", os.environ[name])
